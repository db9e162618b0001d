//! `SPARAMX_ISA` as a user sets it. Detection happens once per process, so each value gets a process of its own: this
//! test has its own `main`, which runs itself again as the child.

use std::process::Command;

use sparamx_cpu::{Cpu, ISA_VARIABLE, Isa};

const CHILD: &str = "SPARAMX_TEST_CHILD";

fn main() {
    if std::env::var_os(CHILD).is_some() {
        return print_level();
    }
    let highest: Isa = level(None)
        .parse()
        .expect("without the variable there is a level");
    for isa in Isa::ALL {
        let name = isa.to_string();
        let answer = level(Some(&name));
        if isa <= highest {
            assert_eq!(answer, name);
        } else {
            assert!(
                answer.contains(&format!("reaches {highest} and lacks")),
                "{name}: {answer}"
            );
        }
    }
    assert_eq!(level(Some("")), highest.to_string());
    assert!(level(Some("avx9")).contains("unknown instruction set \"avx9\""));
    println!("every value of {ISA_VARIABLE} is obeyed up to {highest}, and refused above");
}

fn print_level() {
    match Cpu::detect() {
        Ok(cpu) => print!("{}", cpu.isa()),
        Err(error) => print!("{error}"),
    }
}

/// The level, or the error message, of a new process with this value of the variable.
fn level(value: Option<&str>) -> String {
    let mut command = Command::new(std::env::current_exe().expect("the path of this test"));
    command.env(CHILD, "1").env_remove(ISA_VARIABLE);
    if let Some(value) = value {
        command.env(ISA_VARIABLE, value);
    }
    let output = command.output().expect("this test runs again");
    assert!(output.status.success(), "{value:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}
