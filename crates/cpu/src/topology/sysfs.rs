//! What Linux tells under `/sys/devices/system` and in `/proc/meminfo`.

use std::fs;
use std::path::Path;
use std::str::FromStr;

/// Where the files of the system are.
pub(crate) const ROOT: &str = "/";

/// CPU numbers from a file above this are taken for nonsense, so that a range cannot make us allocate without bound.
const MAX_CPUS: usize = 16 * 1024;

/// A NUMA node: memory, and the CPUs near it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The number that the system gives it.
    pub id: usize,
    /// Its logical CPUs, ascending.
    pub cpus: Vec<usize>,
}

/// One cache of a core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// 1 is nearest to the core.
    pub level: u32,
    /// What it holds.
    pub kind: CacheKind,
    /// Its size.
    pub bytes: usize,
    /// The size of a line.
    pub line_bytes: usize,
    /// The number of logical CPUs that share it.
    pub shared_by: usize,
}

/// What a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    /// Data only.
    Data,
    /// Instructions only.
    Instruction,
    /// Both.
    Unified,
}

impl FromStr for CacheKind {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "Data" => Ok(CacheKind::Data),
            "Instruction" => Ok(CacheKind::Instruction),
            "Unified" => Ok(CacheKind::Unified),
            _ => Err(()),
        }
    }
}

/// `cpus` ordered for threads (first one of each core, then the next ones), and the number of cores.
pub(super) fn by_core(root: &Path, cpus: &[usize]) -> (Vec<usize>, usize) {
    let mut rounds: Vec<Vec<usize>> = Vec::new();
    for &cpu in cpus {
        let path = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let siblings = read(&root.join(path)).and_then(|list| parse_cpu_list(&list));
        let is_before = |sibling: &&usize| **sibling < cpu && cpus.contains(sibling);
        let round = siblings.iter().flatten().filter(is_before).count();
        rounds.resize_with(rounds.len().max(round + 1), Vec::new);
        rounds[round].push(cpu);
    }
    let cores = rounds.first().map_or(0, Vec::len);
    (rounds.concat(), cores)
}

pub(super) fn numa_nodes(root: &Path) -> Vec<Node> {
    let directory = root.join("sys/devices/system/node");
    let online = read(&directory.join("online")).and_then(|list| parse_cpu_list(&list));
    let node = |id: usize| {
        let cpus = parse_cpu_list(&read(&directory.join(format!("node{id}/cpulist")))?)?;
        (!cpus.is_empty()).then_some(Node { id, cpus })
    };
    online
        .unwrap_or_default()
        .into_iter()
        .filter_map(node)
        .collect()
}

pub(crate) fn caches(root: &Path) -> Vec<Cache> {
    let directory = root.join("sys/devices/system/cpu/cpu0/cache");
    let indices = (0..)
        .map(|i| directory.join(format!("index{i}")))
        .take_while(|path| path.is_dir());
    let mut caches: Vec<Cache> = indices.filter_map(|path| cache(&path)).collect();
    caches.sort_by_key(|cache| cache.level);
    caches
}

fn cache(directory: &Path) -> Option<Cache> {
    let field = |name: &str| read(&directory.join(name));
    Some(Cache {
        level: field("level")?.parse().ok()?,
        kind: field("type")?.parse().ok()?,
        bytes: parse_size(&field("size")?)?,
        line_bytes: field("coherency_line_size")?.parse().ok()?,
        shared_by: parse_cpu_list(&field("shared_cpu_list")?)?.len(),
    })
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
pub(super) fn memory_available(root: &Path) -> Option<u64> {
    let text = read(&root.join("proc/meminfo"))?;
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The text of a small system file without the blanks around it; `None` if it cannot be read.
pub(super) fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

/// A list like `0-3,8`, ascending without repetition; `None` if it is anything else. Empty text is an empty list.
fn parse_cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MAX_CPUS {
            return None;
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

/// A size like `48K` or `2M`, in bytes.
fn parse_size(text: &str) -> Option<usize> {
    let (digits, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) => (digits, &text[digits.len()..]),
        None => (text, ""),
    };
    let unit_bytes = match unit {
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => 1,
    };
    digits.parse::<usize>().ok()?.checked_mul(unit_bytes)
}

#[cfg(test)]
mod tests {
    use super::super::testing::tree;
    use super::*;

    #[test]
    fn lists_are_read() {
        let list = |text| parse_cpu_list(text).unwrap();
        assert_eq!(list(""), []);
        assert_eq!(list("5"), [5]);
        assert_eq!(list("0-3,8,10-11"), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(list("2,0-2,1"), [0, 1, 2]);
    }

    #[test]
    fn hostile_lists_are_refused() {
        let wrong = [
            ",",
            "1,",
            "-",
            "1-",
            "-1",
            "3-2",
            "1-2-3",
            "a",
            "0x1",
            "1 2",
            "0-18446744073709551615",
            "0-16384",
            "99999999999999999999",
            "\u{0}",
            "1;2",
        ];
        for text in wrong {
            assert_eq!(parse_cpu_list(text), None, "{text:?}");
        }
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("48K"), Some(48 << 10));
        assert_eq!(parse_size("2M"), Some(2 << 20));
        assert_eq!(parse_size("1G"), Some(1 << 30));
        assert_eq!(parse_size("512"), Some(512));
        for wrong in [
            "",
            "K",
            "-1K",
            "1T",
            "1.5M",
            "K1",
            "1KK",
            "18446744073709551615K",
            "é",
        ] {
            assert_eq!(parse_size(wrong), None, "{wrong:?}");
        }
    }

    fn siblings(groups: &[&[usize]]) -> tempfile::TempDir {
        let file =
            |cpu: usize| format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let list = |group: &[usize]| {
            group
                .iter()
                .map(usize::to_string)
                .collect::<Vec<_>>()
                .join(",")
        };
        let pairs = groups
            .iter()
            .flat_map(|group| group.iter().map(|&cpu| (file(cpu), list(group))));
        let files: Vec<(String, String)> = pairs.collect();
        tree(
            &files
                .iter()
                .map(|(path, text)| (path.as_str(), text.as_str()))
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn cores_come_before_their_second_threads() {
        let neighbors = siblings(&[&[0, 1], &[2, 3], &[4, 5]]);
        assert_eq!(
            by_core(neighbors.path(), &[0, 1, 2, 3, 4, 5]),
            (vec![0, 2, 4, 1, 3, 5], 3)
        );
        // Only one thread of the last core is allowed, and it is the second.
        assert_eq!(by_core(neighbors.path(), &[2, 3, 5]), (vec![2, 5, 3], 2));
        let halves = siblings(&[&[0, 2], &[1, 3]]);
        assert_eq!(by_core(halves.path(), &[0, 1, 2, 3]), (vec![0, 1, 2, 3], 2));
        let four = siblings(&[&[0, 1, 2, 3]]);
        assert_eq!(by_core(four.path(), &[0, 1, 2, 3]), (vec![0, 1, 2, 3], 1));
    }

    #[test]
    fn without_siblings_each_cpu_is_a_core() {
        let cpus = [0, 1, 7];
        assert_eq!(by_core(tree(&[]).path(), &cpus), (cpus.to_vec(), 3));
        let path = "sys/devices/system/cpu/cpu7/topology/thread_siblings_list";
        for hostile in ["", "7-0", "0-4294967295", "9000", "\u{0}"] {
            assert_eq!(
                by_core(tree(&[(path, hostile)]).path(), &cpus),
                (cpus.to_vec(), 3),
                "{hostile:?}"
            );
        }
    }

    #[test]
    fn nodes_with_cpus_are_listed() {
        let files = [
            ("sys/devices/system/node/online", "0-2,4\n"),
            ("sys/devices/system/node/node0/cpulist", "0-1,4-5\n"),
            ("sys/devices/system/node/node1/cpulist", "2-3\n"),
            ("sys/devices/system/node/node2/cpulist", "\n"),
        ];
        let nodes = [
            Node {
                id: 0,
                cpus: vec![0, 1, 4, 5],
            },
            Node {
                id: 1,
                cpus: vec![2, 3],
            },
        ];
        assert_eq!(numa_nodes(tree(&files).path()), nodes);
        assert_eq!(numa_nodes(tree(&files[1..]).path()), []);
        let hostile = [
            ("sys/devices/system/node/online", "0"),
            ("sys/devices/system/node/node0/cpulist", "1-0"),
        ];
        assert_eq!(numa_nodes(tree(&hostile).path()), []);
    }

    #[test]
    fn caches_are_read_and_damaged_ones_left_out() {
        let base = "sys/devices/system/cpu/cpu0/cache";
        let index = |i: u32, fields: [&str; 5]| {
            let names = [
                "level",
                "type",
                "size",
                "coherency_line_size",
                "shared_cpu_list",
            ];
            let file = |name: &str| format!("{base}/index{i}/{name}");
            names
                .into_iter()
                .zip(fields)
                .map(|(name, value)| (file(name), format!("{value}\n")))
                .collect::<Vec<_>>()
        };
        let files = [
            index(0, ["2", "Unified", "2048K", "64", "0,112"]),
            index(1, ["1", "Data", "48K", "64", "0,112"]),
            index(2, ["1", "Instruction", "32K", "64", "0,112"]),
            index(3, ["3", "Unified", "lots", "64", "0-111"]),
            index(4, ["3", "Trace", "1K", "64", "0-111"]),
            index(5, ["-3", "Unified", "1K", "64", "0-111"]),
            // 6 is missing, so 7 is not reached.
            index(7, ["4", "Unified", "1K", "64", "0-111"]),
        ]
        .concat();
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
            .collect();
        let cache = |level, kind, kib: usize| Cache {
            level,
            kind,
            bytes: kib << 10,
            line_bytes: 64,
            shared_by: 2,
        };
        let expected = [
            cache(1, CacheKind::Data, 48),
            cache(1, CacheKind::Instruction, 32),
            cache(2, CacheKind::Unified, 2048),
        ];
        assert_eq!(caches(tree(&files).path()), expected);
        assert_eq!(caches(tree(&[]).path()), []);
    }

    #[test]
    fn available_memory_is_read() {
        let memory = |text| memory_available(tree(&[("proc/meminfo", text)]).path());
        assert_eq!(
            memory("MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\n"),
            Some(2 << 20)
        );
        for wrong in [
            "",
            "MemAvailable:",
            "MemAvailable: 5",
            "MemAvailable: -1 kB",
            "MemAvailable: 18446744073709551615 kB",
        ] {
            assert_eq!(memory(wrong), None, "{wrong:?}");
        }
        assert_eq!(memory_available(tree(&[]).path()), None);
    }
}
