//! Oracle of attention: one query head and the keys and values it sees, in f64.

use std::collections::BTreeMap;

use half::bf16;
use sparamx_kernels::tolerance::{BF16_EPS, sum_tolerance};

use super::vecops::{Bounded, EXP_ERROR, EXP_ZERO, U};

/// One query head of one token.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// `[head_dim]`
    pub q: &'a [f32],
    /// Factor of the scores.
    pub scale: f32,
    /// Whether queries and weights are rounded to bf16, as bf16 kernels do.
    pub bf16: bool,
    /// Pages over which the sums run at most.
    pub pages: usize,
    /// For each token that the query sees its page, if that is int8: queries and weights are then rounded to levels. Tokens
    /// after the last of these are of bf16 pages.
    pub int8: &'a [Option<usize>],
}

/// `softmax(q * keys^T * scale) * values` for the `[n, head_dim]` keys and values that the query sees.
///
/// The oracle rounds q times scale to f32, and to bf16 for bf16 kernels, as all kernels do. What is left:
///
/// - A score errs by e = [`sum_tolerance`] of its products, and its weight by that factor.
/// - Bringing it to the last maximum, in one subtraction or several, errs by `U |score - max|`. There is one exponential for
///   the weight; each page and each merge of chunks, at most as many, may rescale once more: an exponential and a product.
/// - For bf16 kernels a weight is rounded, by BF16_EPS / 2, before it is multiplied, but not in the sum of weights; for int8
///   pages it errs by half a level, a 254th of the largest weight of the page.
///
/// With r_j the relative error of weight j, p_j its share of all weights, |error| <= sum p_j r_j (|v_j| + |out|), the last
/// for the sum of weights; to it come the additions, one for each of the n products, pages and merges, in
/// both sums, and two roundings of the division. The factor 2 is for the higher orders.
pub fn attention(query: Query<'_>, keys: &[f32], values: &[f32]) -> Vec<Bounded> {
    let d = query.q.len();
    let scaled: Vec<f32> = query.q.iter().map(|&q| q * query.scale).collect();
    let float: Vec<f64> = scaled
        .iter()
        .map(|&q| f64::from(round(q, query.bf16)))
        .collect();
    let int8 = to_levels(&scaled);
    let page = |j: usize| query.int8.get(j).copied().flatten();
    let q = |j: usize| match page(j) {
        Some(_) => &int8,
        None => &float,
    };
    let products = |(j, k): (usize, &[f32])| -> Vec<f64> {
        q(j).iter().zip(k).map(|(q, &k)| q * f64::from(k)).collect()
    };
    let score = |k: (usize, &[f32])| -> f64 { products(k).iter().sum() };
    let size =
        |k: (usize, &[f32])| -> f64 { products(k).iter().map(|product| product.abs()).sum() };
    let scores: Vec<f64> = keys.chunks_exact(d).enumerate().map(score).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    let rescales = 2.0 * query.pages as f64;
    let error = |(k, s): ((usize, &[f32]), &f64)| {
        let argument = (s - max).max(EXP_ZERO);
        sum_tolerance(d, size(k)) + U * (EXP_ERROR - argument + rescales * (EXP_ERROR + 1.0))
    };
    let keys = keys.chunks_exact(d).enumerate();
    let errors: Vec<f64> = keys.zip(&scores).map(error).collect();
    let additions = (scores.len() as f64 + rescales) * U;
    let share = |s: f64| (s - max).exp() / sum;
    let mut most = BTreeMap::new();
    for (page, &score) in query.int8.iter().zip(&scores) {
        let most = most.entry(*page).or_insert(score);
        *most = score.max(*most);
    }
    // By how much the weight of a token is rounded, as a share of all weights.
    let rounding: Vec<f64> = (0..scores.len())
        .map(|j| match page(j) {
            Some(own) => share(most[&Some(own)]) / 254.0,
            None if query.bf16 => share(scores[j]) * BF16_EPS / 2.0,
            None => 0.0,
        })
        .collect();
    (0..d)
        .map(|i| {
            let terms = scores.iter().zip(&errors).enumerate();
            let terms =
                terms.map(|(j, (s, e))| (share(*s), *e, rounding[j], f64::from(values[j * d + i])));
            let out: f64 = terms.clone().map(|(p, _, _, v)| p * v).sum();
            let products: f64 = terms
                .clone()
                .map(|(p, e, rounding, v)| v.abs() * (p * (e + additions) + rounding))
                .sum();
            let weights: f64 = terms.map(|(p, e, ..)| p * (e + additions)).sum();
            let allowed = 2.0 * (products + out.abs() * (weights + 2.0 * U));
            Bounded {
                value: out,
                allowed: allowed + (scores.len() + 1) as f64 * f64::from(f32::MIN_POSITIVE),
            }
        })
        .collect()
}

/// What int8 levels of a row are worth, see `docs/numerics.md`.
fn to_levels(row: &[f32]) -> Vec<f64> {
    let most = row.iter().fold(0f32, |most, x| most.max(x.abs()));
    let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
    let level = |x: &f32| f64::from((x * inverse).round_ties_even()) * f64::from(most / 127.0);
    row.iter().map(level).collect()
}

fn round(x: f32, to_bf16: bool) -> f32 {
    if to_bf16 {
        bf16::from_f32(x).to_f32()
    } else {
        x
    }
}
