//! Which kernels a CPU will run.

use std::ops::RangeInclusive;

use serde::Serialize;
use sparamx_cpu::Features;
use sparamx_kernels::catalog::{KernelSpec, catalog, select};
use sparamx_kernels::linear::WeightFormat;

/// The kernel chosen for a number of rows of activations (M).
#[derive(Serialize)]
pub struct Choice {
    /// Format of the weights.
    pub weight: String,
    /// `1`, `3-16` or `17+`.
    pub rows: String,
    /// Its name.
    pub kernel: &'static str,
    /// Why it is chosen.
    pub reason: &'static str,
}

/// What runs for every format and number of rows, few rows first.
pub fn choices(features: Features) -> Vec<Choice> {
    WeightFormat::ALL
        .into_iter()
        .flat_map(|format| {
            let spans = spans(features, format).into_iter();
            spans.map(move |(rows, spec)| Choice {
                weight: format.to_string(),
                rows: span(&rows),
                kernel: spec.name,
                reason: spec.reason,
            })
        })
        .collect()
}

/// Neighboring numbers of rows that one kernel is chosen for.
fn spans(
    features: Features,
    format: WeightFormat,
) -> Vec<(RangeInclusive<usize>, &'static KernelSpec)> {
    // The choice changes only where a kernel's range begins or ends.
    let edges = catalog()
        .iter()
        .flat_map(|spec| [*spec.best_m.start(), spec.best_m.end().saturating_add(1)]);
    let mut starts: Vec<usize> = edges.filter(|&m| m != usize::MAX).collect();
    starts.sort_unstable();
    starts.dedup();
    let mut spans: Vec<(RangeInclusive<usize>, &'static KernelSpec)> = Vec::new();
    for (index, &start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).map_or(usize::MAX, |next| next - 1);
        let spec = select(features, format, start);
        match spans.last_mut() {
            Some((rows, last)) if last.name == spec.name => *rows = *rows.start()..=end,
            _ => spans.push((start..=end, spec)),
        }
    }
    spans
}

/// `1`, `3-16`, or `17+` for a range without an end.
pub fn span(rows: &RangeInclusive<usize>) -> String {
    match (*rows.start(), *rows.end()) {
        (start, usize::MAX) => format!("{start}+"),
        (start, end) if start == end => start.to_string(),
        (start, end) => format!("{start}-{end}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_rows_has_a_kernel() {
        for features in [
            Features::NONE,
            Features::AVX2,
            Features::AVX512,
            Features::AMX_INT8,
        ] {
            for format in WeightFormat::ALL {
                let spans = spans(features, format);
                assert_eq!(*spans[0].0.start(), 1);
                assert_eq!(*spans[spans.len() - 1].0.end(), usize::MAX);
                assert!(
                    spans
                        .windows(2)
                        .all(|pair| pair[0].0.end() + 1 == *pair[1].0.start())
                );
                for (rows, spec) in spans {
                    assert_eq!(select(features, format, *rows.start()).name, spec.name);
                    assert_eq!(
                        select(features, format, (*rows.end()).min(1000)).name,
                        spec.name
                    );
                }
            }
        }
    }

    #[test]
    fn ranges_are_short() {
        assert_eq!(span(&(1..=1)), "1");
        assert_eq!(span(&(3..=16)), "3-16");
        assert_eq!(span(&(17..=usize::MAX)), "17+");
    }
}
