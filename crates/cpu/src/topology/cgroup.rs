//! Limits set by Linux control groups, version 1 and 2.
//!
//! `/proc/self/cgroup` names the group of the process in each hierarchy and `/proc/self/mountinfo` where the hierarchy
//! is mounted. Limits of the groups above count too, so we walk from the group up to the mount point and keep the
//! lowest.
//!
//! Source: kernel documentation `admin-guide/cgroup-v2.rst`, `admin-guide/cgroup-v1/memory.rst`,
//! `scheduler/sched-bwc.rst`.

use std::path::{Component, Path, PathBuf};

use super::sysfs::read;

/// Version 1 says "no limit" by the greatest number of pages that fits an `i64` of bytes; no machine has half of that.
const NO_LIMIT_BYTES: u64 = 1 << 62;

/// CPUs' worth of time that the groups allow; `None` if unlimited.
pub(super) fn cpu_quota(root: &Path) -> Option<f64> {
    let v2 = groups(root, Hierarchy::V2)
        .into_iter()
        .filter_map(|group| parse_cpu_max(&read(&group.join("cpu.max"))?));
    let v1 = groups(root, Hierarchy::V1("cpu"))
        .into_iter()
        .filter_map(|group| {
            quotient(
                &read(&group.join("cpu.cfs_quota_us"))?,
                &read(&group.join("cpu.cfs_period_us"))?,
            )
        });
    v2.chain(v1).reduce(f64::min)
}

/// Bytes that the groups leave to be allocated; `None` if unlimited.
pub(super) fn memory_left(root: &Path) -> Option<u64> {
    let v2 = groups(root, Hierarchy::V2).into_iter();
    let v2 = v2.filter_map(|group| left(&group, "memory.max", "memory.current", ""));
    let v1 = groups(root, Hierarchy::V1("memory")).into_iter();
    let v1 = v1.filter_map(|group| {
        left(
            &group,
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_",
        )
    });
    v2.chain(v1).min()
}

/// The limit of a group less what is in use, not counting the file pages that the kernel drops when memory is short.
fn left(group: &Path, limit: &str, usage: &str, prefix: &str) -> Option<u64> {
    let number = |name: &str| read(&group.join(name))?.parse::<u64>().ok();
    let limit_bytes = number(limit).filter(|&bytes| bytes < NO_LIMIT_BYTES)?;
    let statistics = read(&group.join("memory.stat")).unwrap_or_default();
    let statistic = |name: &str| {
        let value = |line: &str| {
            line.strip_prefix(prefix)?
                .strip_prefix(name)?
                .trim()
                .parse::<u64>()
                .ok()
        };
        statistics.lines().find_map(value).unwrap_or(0)
    };
    let file_bytes = statistic("active_file ").saturating_add(statistic("inactive_file "));
    let used_bytes = number(usage).unwrap_or(0).saturating_sub(file_bytes);
    Some(limit_bytes.saturating_sub(used_bytes))
}

/// `cpu.max`: quota and period in microseconds, or `max` and the period.
fn parse_cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.split_once(' ')?;
    quotient(quota, period)
}

/// Quota over period, both in microseconds. No quota is `max` in version 2 and -1 in version 1: neither is a `u64`.
fn quotient(quota_us: &str, period_us: &str) -> Option<f64> {
    let (quota, period) = (
        quota_us.parse::<u64>().ok()?,
        period_us.parse::<u64>().ok()?,
    );
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

#[derive(Clone, Copy)]
enum Hierarchy {
    /// The one hierarchy of version 2.
    V2,
    /// The hierarchy of version 1 with this controller.
    V1(&'static str),
}

/// The directory of the process's group in the hierarchy and those above it up to the mount point; empty if there is no
/// such hierarchy.
fn groups(root: &Path, hierarchy: Hierarchy) -> Vec<PathBuf> {
    let find = || {
        let own = own_group(&read(&root.join("proc/self/cgroup"))?, hierarchy)?;
        let mount = find_mount(&read(&root.join("proc/self/mountinfo"))?, hierarchy)?;
        let top = root.join(mount.point.strip_prefix("/").ok()?);
        // In a container the name may be that of the host, of which only a part is mounted here.
        let below = own.strip_prefix(&mount.root).unwrap_or(Path::new(""));
        let is_plain = below
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        let group = if is_plain {
            top.join(below)
        } else {
            top.clone()
        };
        Some(
            group
                .ancestors()
                .take_while(|path| path.starts_with(&top))
                .map(Path::to_owned)
                .collect(),
        )
    };
    find().unwrap_or_default()
}

/// The name of the process's group, from lines `id:controllers:name`. Version 2 has no controllers there.
fn own_group(text: &str, hierarchy: Hierarchy) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, name) = (fields.next()?, fields.next()?, fields.next()?);
        let is_it = match hierarchy {
            Hierarchy::V2 => id == "0" && controllers.is_empty(),
            Hierarchy::V1(controller) => controllers.split(',').any(|c| c == controller),
        };
        is_it.then(|| PathBuf::from(name))
    })
}

struct Mount {
    /// The group that is mounted, `/` for the whole hierarchy.
    root: PathBuf,
    point: PathBuf,
}

/// Finds where a hierarchy is mounted, from lines
/// `id parent device root point options [optional ..] - type source super_options`.
fn find_mount(text: &str, hierarchy: Hierarchy) -> Option<Mount> {
    text.lines().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let mut system = system.split(' ');
        let (kind, options) = (system.next()?, system.nth(1)?);
        let is_it = match hierarchy {
            Hierarchy::V2 => kind == "cgroup2",
            Hierarchy::V1(controller) => {
                kind == "cgroup" && options.split(',').any(|o| o == controller)
            }
        };
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        is_it.then(|| Mount {
            root: unescape(root).into(),
            point: unescape(point).into(),
        })
    })
}

/// Undoes the octal escapes (`\040` for a blank) of `mountinfo`.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let byte = part
            .get(..3)
            .and_then(|octal| u8::from_str_radix(octal, 8).ok());
        match byte.filter(u8::is_ascii) {
            Some(byte) => {
                plain.push(char::from(byte));
                plain.push_str(&part[3..]);
            }
            None => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::super::testing::tree;
    use super::*;

    const MOUNT_V2: &str =
        "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const MOUNT_V1: &str = "30 23 0:27 / / rw - ext4 /dev/vda rw\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    fn quota(files: &[(&str, &str)]) -> Option<f64> {
        cpu_quota(tree(files).path())
    }

    fn memory(files: &[(&str, &str)]) -> Option<u64> {
        memory_left(tree(files).path())
    }

    #[test]
    fn v2_takes_the_lowest_quota_up_to_the_mount_point() {
        let files = [
            ("proc/self/cgroup", "0::/a/b\n"),
            ("proc/self/mountinfo", MOUNT_V2),
            ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/a/cpu.max", "250000 100000\n"),
            ("sys/fs/cgroup/cpu.max", "400000 100000\n"),
            // Above the mount point: none of ours.
            ("sys/fs/cpu.max", "100000 100000\n"),
        ];
        assert_eq!(quota(&files), Some(2.5));
        assert_eq!(quota(&files[..3]), None);
    }

    #[test]
    fn v1_takes_the_lowest_quota() {
        let files = [
            (
                "proc/self/cgroup",
                "4:memory:/x\n3:cpu,cpuacct:/job\n0::/\n",
            ),
            ("proc/self/mountinfo", MOUNT_V1),
            ("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "150000\n"),
            (
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us",
                "100000\n",
            ),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(quota(&files), Some(1.5));
        assert_eq!(quota(&files[..2]), None);
    }

    #[test]
    fn a_container_sees_part_of_the_hierarchy() {
        let mount = "32 31 0:29 /docker/f00 /sys/fs/cgroup/cpu\\040set rw - cgroup cgroup rw,cpu\n";
        for name in [
            "/docker/f00",
            "/docker/f00/",
            "/somewhere/else",
            "/docker/f00/../../..",
            "relative",
            "/docker/f00/../x",
        ] {
            let cgroup = format!("3:cpu:{name}\n");
            let files = [
                ("proc/self/cgroup", cgroup.as_str()),
                ("proc/self/mountinfo", mount),
                ("sys/fs/cgroup/cpu set/cpu.cfs_quota_us", "300000"),
                ("sys/fs/cgroup/cpu set/cpu.cfs_period_us", "100000"),
                ("sys/fs/cgroup/x/cpu.cfs_quota_us", "100000"),
                ("sys/fs/cgroup/x/cpu.cfs_period_us", "100000"),
            ];
            assert_eq!(quota(&files), Some(3.0), "{name}");
        }
    }

    #[test]
    fn hostile_quotas_are_no_quota() {
        let long = "9".repeat(400);
        let wrong = [
            "",
            "\n",
            "max",
            "max max",
            "100000",
            "0 100000",
            "100000 0",
            "-5 100000",
            "nan 1",
            "1e5 1e5",
            "inf 100000",
            "100000  100000",
            "100000 100000 7",
            "\u{fffd} 1",
            &long,
        ];
        for text in wrong {
            let files = [
                ("proc/self/cgroup", "0::/"),
                ("proc/self/mountinfo", MOUNT_V2),
                ("sys/fs/cgroup/cpu.max", text),
            ];
            assert_eq!(quota(&files), None, "{text:?}");
        }
    }

    #[test]
    fn hostile_tables_are_no_group() {
        let limit = ("sys/fs/cgroup/cpu.max", "100000 100000");
        for cgroup in [
            "",
            "::::",
            "0:",
            "0",
            "\n\n0:cpu",
            "1::/",
            "0:cpu:/",
            "\u{0}",
        ] {
            assert_eq!(
                quota(&[
                    ("proc/self/cgroup", cgroup),
                    ("proc/self/mountinfo", MOUNT_V2),
                    limit
                ]),
                None
            );
        }
        for mount in [
            "",
            " - ",
            "1 2 3 4 5 - cgroup2",
            "1 - cgroup2 x rw",
            "1 2 3 / relative rw - cgroup2 c rw",
            "- - -",
        ] {
            assert_eq!(
                quota(&[
                    ("proc/self/cgroup", "0::/"),
                    ("proc/self/mountinfo", mount),
                    limit
                ]),
                None,
                "{mount}"
            );
        }
        assert_eq!(quota(&[]), None);
    }

    #[test]
    fn v2_memory_leaves_out_file_pages() {
        let files = [
            ("proc/self/cgroup", "0::/a\n"),
            ("proc/self/mountinfo", MOUNT_V2),
            ("sys/fs/cgroup/a/memory.max", "1000000\n"),
            ("sys/fs/cgroup/a/memory.current", "700000\n"),
            (
                "sys/fs/cgroup/a/memory.stat",
                "anon 400000\nfile 300000\ninactive_file 200000\nactive_file 100000\n",
            ),
            ("sys/fs/cgroup/memory.max", "max\n"),
        ];
        assert_eq!(memory(&files), Some(600_000));
        assert_eq!(memory(&files[..4]), Some(300_000));
        assert_eq!(memory(&files[..3]), Some(1_000_000));
        assert_eq!(memory(&files[..2]), None);
    }

    #[test]
    fn v1_memory_counts_the_groups_below() {
        let files = [
            ("proc/self/cgroup", "4:memory:/job\n"),
            ("proc/self/mountinfo", MOUNT_V1),
            (
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes",
                "1000000\n",
            ),
            ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "900000\n"),
            (
                "sys/fs/cgroup/memory/job/memory.stat",
                "active_file 1\ntotal_active_file 300000\ntotal_inactive_file 0\n",
            ),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
        ];
        assert_eq!(memory(&files), Some(400_000));
        let [cgroup, mount, .., unlimited] = files;
        assert_eq!(memory(&[cgroup, mount, unlimited]), None);
    }

    #[test]
    fn hostile_memory_numbers_do_no_harm() {
        let group = [
            ("proc/self/cgroup", "0::/"),
            ("proc/self/mountinfo", MOUNT_V2),
        ];
        for wrong in ["", "-1", "max", "1k", "99999999999999999999999"] {
            assert_eq!(
                memory(&[group[0], group[1], ("sys/fs/cgroup/memory.max", wrong)]),
                None,
                "{wrong}"
            );
        }
        let files = [
            group[0],
            group[1],
            ("sys/fs/cgroup/memory.max", "1000"),
            ("sys/fs/cgroup/memory.current", "18446744073709551615"),
            (
                "sys/fs/cgroup/memory.stat",
                "active_file 18446744073709551615\ninactive_file 18446744073709551615\n\n file",
            ),
        ];
        assert_eq!(memory(&files), Some(1000));
        assert_eq!(memory(&files[..4]), Some(0));
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape("a\\040b\\134c\\011"), "a b\\c\t");
        for plain in ["", "\\", "\\9", "\\999", "\\777", "\\377", "a\\04", "\\é\\"] {
            assert_eq!(unescape(plain), plain);
        }
    }
}
