//! CPU features, operating-system permission for AMX tiles, caches, cores and NUMA nodes.
