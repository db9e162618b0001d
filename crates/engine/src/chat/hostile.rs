//! Templates that mean harm: each ends with an error, soon, and the process lives on.

use std::path::Path;

use super::{ChatTemplate, Message, sandbox::MAX_TEMPLATE_BYTES};

/// What rendering says; an error of either step.
fn outcome(source: &str) -> Result<String, String> {
    let none: [(&str, &str); 0] = [];
    let template = ChatTemplate::new(Path::new("t"), source, none);
    template
        .and_then(|template| template.render(&[Message::new("user", "Hi")], true))
        .map_err(|error| error.to_string())
}

/// Loops and texts that grow end when the fuel does.
#[test]
fn work_is_bounded() {
    let long = "'0123456789abcdef' * 60000";
    for source in [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
        "{% set ns = namespace(a=['x']) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}",
        "{% set ns = namespace(a=['x']) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a|string }}",
        "{% set ns = namespace(a=['x']) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a|tojson }}",
        "{{ [1]|tojson(indent=1000000000) }}",
        "{{ [[[[[1]]]]]|tojson(indent=90000000) }}",
        "{{ 'a\\nb'|indent(1000000000) }}",
        "{{ ('a\\n' * 100000)|indent(1000000) }}",
        "{{ 'x'.center(1000000000) }}",
        "{{ 'x'.zfill(1000000000) }}",
        "{{ '\\t'.expandtabs(1000000000) }}",
        "{{ '{:>1000000000}'.format('x') }}",
        "{{ '%1000000000s' % 'x' }}",
        "{{ '%1000000000s'|format('x') }}",
        "{{ 'x' * 90000000 * 100 }}",
        "{{ ([1] * 90000000)|join(',') }}",
        "{{ ([1] * 90000000)|list }}",
        "{{ ([1] * 90000000)|tojson }}",
        "{{ [1] * 90000000 }}",
        "{{ ([1] * 90000000)|sort }}",
        "{{ ([1] * 90000000)|map('string')|list }}",
        "{{ ([1] * 90000000)|sum }}",
        "{{ ([1] * 90000000).count(2) }}",
        "{{ ([1] * 90000000).index(2) }}",
        "{{ ','.join(['x'] * 90000000) }}",
        "{% for x in [1] * 90000000 %}{% endfor %}",
        &format!("{{{{ ({long}).replace('0', {long}) }}}}"),
        &format!("{{{{ ({long})|replace('0', {long}) }}}}"),
        &format!("{{{{ ({long}).join(['x'] * 100000) }}}}"),
        "{% macro m(x) %}{{ m(x) }}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    ] {
        let error = outcome(source).expect_err(source);
        // The last on a machine that is busy.
        let known = [
            "more work or memory",
            "recursion",
            "too large",
            "too many",
            "more than 2 seconds",
        ];
        assert!(
            known.iter().any(|word| error.contains(word)),
            "{source}: {error}"
        );
    }
}

/// Chains and nests as long as a template may be, over lists of any depth: neither the parser's stack ends nor ours.
#[test]
fn no_stack_overflows() {
    let chain = |before: &str, link: &str, after: &str| {
        let links = (MAX_TEMPLATE_BYTES - before.len() - after.len()) / link.len();
        format!("{before}{}{after}", link.repeat(links))
    };
    for (before, link, after) in [
        ("{{ ", "-", "1 }}"),
        ("{{ ", "not ", "1 }}"),
        ("{{ ", "(", "1 }}"),
        ("{{ ", "[", "1 }}"),
        ("{{ 1", "+1", " }}"),
        ("{{ 1", "%1", " }}"),
        ("{{ 1", "**1", " }}"),
        ("{{ 1", "<1", " }}"),
        ("{{ a", ".a", " }}"),
        ("{{ a", "[0]", " }}"),
        ("{{ a", "()", " }}"),
        ("{{ 1", "|e", " }}"),
        ("{{ 1", " if 1", " }}"),
        ("{{ ", "1 if 0 else ", "1 }}"),
        ("{% if a %}", "{%elif a%}", "{% endif %}"),
        ("", "{%if a%}", ""),
        ("", "{%with%}", ""),
    ] {
        // Whether there is a limit for it or not: it ends in one way or the other.
        let _ = outcome(&chain(before, link, after));
    }
    let nest = "{% set ns = namespace(a=[]) %}{% for i in range(99999) %}{% set ns.a = [ns.a] %}{% endfor %}";
    for used in [
        "ns.a",
        "ns.a ~ ''",
        "ns.a|string",
        "ns.a|tojson",
        "ns.a == [1]",
    ] {
        outcome(&format!("{nest}{{{{ {used} }}}}")).unwrap_or_default();
    }
}

/// What walks through a value that holds itself does not come back, so that there is none.
#[test]
fn no_namespace_holds_itself() {
    for value in [
        "[ns]",
        "{'b': [ns]}",
        "{ns: 1}",
        "ns",
        "[other]",
        "[1, ns]|reverse",
        "1, ns",
    ] {
        let source = format!(
            "{{% set ns = namespace(a=1) %}}{{% set other = namespace(b=ns) %}}{{%- set ns.a = {value} -%}}{{{{ ns|tojson ~ ns }}}}"
        );
        let error = outcome(&source).expect_err(&source);
        assert!(
            error.contains("a namespace cannot be kept in a namespace"),
            "{error}"
        );
    }
    assert_eq!(
        outcome(
            "{% set ns = namespace(a=[]) %}{% for m in messages %}{% set ns.a = ns.a + [m.role] %}{% endfor %}{{ ns.a }}"
        ),
        Ok("['user']".to_owned())
    );
}

#[test]
fn formats_of_dates_are_short_and_nothing_is_dumped() {
    let error = outcome("{{ strftime_now('%c' * 1000) }}").expect_err("too long");
    assert!(error.contains("at most 256 bytes"), "{error}");
    let error = outcome("{{ debug() }}").expect_err("no such function");
    assert!(error.contains("debug"), "{error}");
}

#[test]
fn what_takes_too_long_is_left() {
    // Lists that hold each other many times: comparing them is no work that is counted.
    let lists: String = (0..60)
        .map(|i| {
            format!("{{% set a = [a, a] if {i} else [] %}}{{% set b = [b, b] if {i} else [] %}}")
        })
        .collect();
    let error = outcome(&(lists + "{{ a == b }}")).unwrap_err();
    assert!(error.contains("takes more than 2 seconds"), "{error}");
}

#[test]
fn a_template_has_a_size() {
    let error = outcome(&"x".repeat(MAX_TEMPLATE_BYTES + 1)).unwrap_err();
    assert!(error.contains("262145 bytes"), "{error}");
    assert_eq!(
        outcome(&"x".repeat(MAX_TEMPLATE_BYTES)).unwrap().len(),
        MAX_TEMPLATE_BYTES
    );
}
