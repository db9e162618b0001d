//! What Linux tells under `/sys/devices/system` and in `/proc/meminfo`.

use std::fs;
use std::path::Path;
use std::str::FromStr;

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

pub(super) fn caches(root: &Path) -> Vec<Cache> {
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
