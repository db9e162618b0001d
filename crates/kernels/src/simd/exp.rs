//! The exponential function.

use super::Lanes;

/// 1.5 * 2^23: adding it to a number of magnitude under 2^22 leaves no bits below 1, so adding and subtracting it rounds to
/// the nearest whole number.
const ROUNDER: f32 = 12_582_912.0;

/// ln 2 in two parts. The first has 9 significant bits, so its product with a whole number up to 2^15 is exact (Cody and
/// Waite, 1980); the parts are those of the Cephes library.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `(exp(r) - 1 - r) / r^2` on |r| <= ln(2) / 2, highest power first: the polynomial of Cephes `expf` (Moshier), whose own
/// error there is under 2e-8 of exp(r).
const POLYNOMIAL: [f32; 6] = [
    1.987_569_1e-4,
    1.398_199_9e-3,
    8.333_452e-3,
    4.166_579_6e-2,
    1.666_666_6e-1,
    0.5,
];

/// Below, exp(x) rounds to 0; above, to infinity. Arguments beyond are moved here.
const LOWEST: f32 = -104.0;
const HIGHEST: f32 = 89.0;

/// `exp(x)` in every lane: 0 at -infinity, infinity above 88.73, NaN for NaN.
///
/// x = n ln 2 + r with n whole, exp(x) = 2^n exp(r). The error is under 2 units in the last place: 0.5 from the last addition
/// `1 + (r + r^2 p)`, whose result is at least 0.7; 0.34 from the polynomial (2e-8 / 2^-24); and the roundings of r, of size 0.35
/// at most, in the second step of the reduction and in `r + r^2 p`, of half a unit of r each, or a quarter of the result's;
/// those at the size of r^2 weigh less. The test finds 1.01 at most among every 61st f32.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(l: L, x: L::F32) -> L::F32 {
    // The order of the operands lets a NaN through.
    let x = l.max(l.splat(LOWEST), l.min(l.splat(HIGHEST), x));
    let rounder = l.splat(ROUNDER);
    let n = l.sub(
        l.mul_add(x, l.splat(std::f32::consts::LOG2_E), rounder),
        rounder,
    );
    let r = l.mul_add(n, l.splat(-LN_2_HIGH), x);
    let r = l.mul_add(n, l.splat(-LN_2_LOW), r);
    let mut p = l.splat(POLYNOMIAL[0]);
    for c in &POLYNOMIAL[1..] {
        p = l.mul_add(p, r, l.splat(*c));
    }
    let p = l.mul_add(l.mul(r, r), p, r);
    l.scale(l.add(p, l.splat(1.0)), n)
}

#[cfg(test)]
mod tests {
    use sparamx_cpu::{Cpu, Isa};

    use super::*;
    use crate::simd::{VectorOp, dispatch};

    struct Exp<'a>(&'a mut [f32]);

    impl VectorOp for Exp<'_> {
        type Output = ();

        #[inline(always)]
        fn eval<L: Lanes>(self, l: L) {
            for x in self.0.chunks_mut(L::LEN) {
                l.store_some(exp(l, l.load_some(x, 0.0)), x);
            }
        }
    }

    fn levels() -> impl Iterator<Item = Cpu> {
        let cpu = Cpu::detect().unwrap();
        Isa::ALL
            .into_iter()
            .filter(move |isa| *isa <= cpu.isa())
            .map(move |isa| cpu.at_most(isa))
    }

    /// Distance in units of the last place of the exact result, at least that of the smallest normal number.
    fn ulps(got: f32, exact: f64) -> f64 {
        let exponent = exact.log2().floor().max(-126.0);
        (f64::from(got) - exact).abs() / (exponent - 23.0).exp2()
    }

    /// Every 61st of all f32 between the limits, with either sign.
    #[test]
    fn error_is_under_two_units_in_the_last_place() {
        let step = if std::env::var_os("SPARAMX_TEST_FAST").is_some() {
            61 << 10
        } else {
            61
        };
        for cpu in levels() {
            let mut worst = (0.0, 0.0);
            let mut next = 0u32;
            while next <= 105f32.to_bits() {
                let magnitudes = (next..).step_by(step).take(1024).map(f32::from_bits);
                let x: Vec<f32> = magnitudes.flat_map(|x| [x.min(88.72), -x]).collect();
                let mut got = x.clone();
                dispatch(&cpu, Exp(&mut got));
                for (&x, &got) in x.iter().zip(&got) {
                    let error = ulps(got, f64::from(x).exp());
                    if error > worst.0 {
                        worst = (error, x);
                    }
                }
                next += 1024 * step as u32;
            }
            assert!(
                worst.0 < 2.0,
                "{}: {} units at {}",
                cpu.isa(),
                worst.0,
                worst.1
            );
        }
    }

    #[test]
    fn limits_are_exact() {
        let cases = [
            (f32::NEG_INFINITY, 0.0),
            (-1e30, 0.0),
            (-104.0, 0.0),
            (-0.0, 1.0),
            (0.0, 1.0),
            (1e-40, 1.0),
            (88.8, f32::INFINITY),
            (f32::MAX, f32::INFINITY),
            (f32::INFINITY, f32::INFINITY),
        ];
        for cpu in levels() {
            for (x, want) in cases {
                let mut got = [x; 17];
                dispatch(&cpu, Exp(&mut got));
                assert_eq!(got, [want; 17], "{}: exp({x})", cpu.isa());
            }
            let mut nan = [f32::NAN; 17];
            dispatch(&cpu, Exp(&mut nan));
            assert!(nan.iter().all(|x| x.is_nan()), "{}", cpu.isa());
        }
    }
}
