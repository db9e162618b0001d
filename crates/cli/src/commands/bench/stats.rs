//! Figures out of the rounds.

/// The middle one, or the mean of the two in the middle; none of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => (sorted[even / 2 - 1] + sorted[even / 2]) / 2.0,
    }
}

/// The median over the rounds of one figure over another. A machine that is slow for a round is slow for both of them, so
/// this stays the same where the ratio of the medians may not.
pub fn median_ratio(over: &[f64], under: &[f64]) -> f64 {
    let ratios: Vec<f64> = over.iter().zip(under).map(|(a, b)| a / b).collect();
    median(&ratios)
}

/// What a table was measured on.
pub fn machine(cpu: &str, isa: &str, threads: usize, read_bandwidth_gb_s: f64) -> String {
    format!("{cpu}, {isa}, {threads} threads, read bandwidth {read_bandwidth_gb_s:.1} GB/s")
}

/// What a table says of a share of the bandwidth of memory. Nothing comes from memory faster than memory reads.
pub fn share(bandwidth_share: f64) -> String {
    if from_cache(bandwidth_share) {
        format!("{bandwidth_share:.2} (from the cache)")
    } else {
        format!("{bandwidth_share:.2}")
    }
}

/// Whether what was read so fast came from the cache, in part or all of it.
pub fn from_cache(bandwidth_share: f64) -> bool {
    bandwidth_share > 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn what_memory_cannot_give_is_marked() {
        assert_eq!((share(0.874), from_cache(1.0)), ("0.87".to_owned(), false));
        assert_eq!(share(1.5), "1.50 (from the cache)");
    }

    #[test]
    fn ratios_are_of_one_round() {
        assert_eq!(median_ratio(&[1.0, 8.0, 3.0], &[2.0, 4.0, 2.0]), 1.5);
    }
}
