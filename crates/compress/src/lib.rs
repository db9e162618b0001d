//! Prunes and packs checkpoints.
