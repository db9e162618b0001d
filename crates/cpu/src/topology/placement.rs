//! Which threads run where.

use super::cpus_by_core;

/// Logical CPUs that no pool of threads has yet, in the order to give them to threads: one of each physical core first. Pools
/// whose CPUs come from one placement do not share any.
#[derive(Clone, Debug)]
pub struct Placement {
    free: Vec<usize>,
}

impl Placement {
    /// All CPUs that this process may run on.
    pub fn all() -> Self {
        Self {
            free: cpus_by_core(),
        }
    }

    /// Takes the next CPUs, one for each of `threads` threads; `None`, and nothing is taken, if so many are not left.
    pub fn take(&mut self, threads: usize) -> Option<Vec<usize>> {
        (threads <= self.free.len()).then(|| self.free.drain(..threads).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_given_twice() {
        let mut placement = Placement {
            free: vec![0, 2, 4, 1, 3],
        };
        assert_eq!(placement.take(2), Some(vec![0, 2]));
        assert_eq!(placement.take(4), None);
        assert_eq!(placement.take(3), Some(vec![4, 1, 3]));
        assert_eq!(placement.take(0), Some(vec![]));
        assert_eq!(placement.take(1), None);
    }
}
