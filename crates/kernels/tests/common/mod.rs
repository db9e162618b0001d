//! What the tests of vector operations and of attention share.

use sparamx_cpu::{Cpu, Isa};
use sparamx_testkit::RowReport;

/// Runs `test` on this CPU limited to each of `levels` and reports it as row `<operation>_<level>`.
///
/// # Panics
/// If `REQUIRE_ISA` asks for a level that this CPU lacks.
pub fn at_each_level(operation: &str, levels: &[Isa], test: impl Fn(Cpu)) {
    let cpu = Cpu::detect().unwrap();
    let mut report = RowReport::default();
    for &isa in levels {
        let name = format!("{operation}_{isa}");
        if isa <= cpu.isa() {
            test(cpu.at_most(isa));
            report.run(&name);
        } else {
            report.skip(&name, isa, &format!("this CPU reaches {}", cpu.isa()));
        }
    }
    report.finish();
}

/// The bit patterns, to compare also NaN and the sign of zero.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
