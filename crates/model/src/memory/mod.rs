//! Weights in memory: read from a checkpoint or made up, and packed or expanded as this CPU likes it.

pub(crate) mod load;
pub(crate) mod random;
pub(crate) mod residence;
