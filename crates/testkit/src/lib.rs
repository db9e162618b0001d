//! Oracles, matrix generators, tolerances and the skip policy of the tests.
