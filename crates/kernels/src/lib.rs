//! Linear layers over packed weights, attention and vector operations for every instruction set.
