//! Limits set by Linux control groups, version 1 and 2.
//!
//! `/proc/self/cgroup` names the group of the process in each hierarchy and `/proc/self/mountinfo` where the hierarchy is
//! mounted. Limits of the groups above count too, so we walk from the group up to the mount point and keep the lowest.
//!
//! Source: kernel documentation `admin-guide/cgroup-v2.rst`, `admin-guide/cgroup-v1/memory.rst`, `scheduler/sched-bwc.rst`.

use std::path::{Component, Path, PathBuf};

use super::sysfs::read;

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
    let limit_bytes = number(limit)?;
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
