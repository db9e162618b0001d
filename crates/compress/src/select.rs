//! Which tensors are compressed, and how far each is pruned.

use sparamx_model::Checkpoint;
use sparamx_model::plan::{Role, TensorPlan};

use crate::layer::Pattern;
use crate::{CompressError, Options};

/// How many names a message proposes.
const NEAR: usize = 3;

/// The pattern of each tensor of the plan that is pruned and quantized; `None` for those that stay as they are. `layers` has the
/// sparsity of each decoder layer where these differ.
///
/// # Errors
/// [`CompressError::Sparsity`], [`CompressError::Pattern`], or [`CompressError::UnknownName`] for a name that no tensor has.
pub(crate) fn patterns(
    checkpoint: &Checkpoint,
    options: &Options,
    layers: Option<&[f64]>,
) -> Result<Vec<Option<Pattern>>, CompressError> {
    let plan = checkpoint.plan();
    options.pattern.check()?;
    for (_, pattern) in &options.patterns {
        pattern.check()?;
    }
    let named = options.patterns.iter().map(|(name, _)| name);
    check_names(plan, named, |tensor| may_compress(tensor, options))?;
    check_names(plan, options.skip.iter(), |tensor| {
        tensor.role != Role::Vector
    })?;
    let pattern = |tensor: &TensorPlan| {
        let module = module(tensor);
        let skipped = options.skip.iter().any(|name| covers(name, module));
        if skipped || !may_compress(tensor, options) {
            return None;
        }
        // Of several names the last one counts: exceptions follow the rule.
        let mut named = options.patterns.iter().rev();
        let named = named.find(|(name, _)| covers(name, module));
        let of_layer = || Some(Pattern::Unstructured(layers?[tensor.layer()?]));
        let common = || of_layer().unwrap_or(options.pattern);
        Some(named.map_or_else(common, |(_, pattern)| *pattern))
    };
    Ok(plan.iter().map(pattern).collect())
}

fn may_compress(tensor: &TensorPlan, options: &Options) -> bool {
    match tensor.role {
        Role::Projection => true,
        Role::Head => options.include_lm_head,
        Role::Embedding | Role::Vector => false,
    }
}

/// The name of a tensor's module.
fn module(tensor: &TensorPlan) -> &str {
    tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name)
}

/// Whether a name covers a module: its parts, between dots, are some consecutive parts of the module's name. A `*` in a part
/// stands for any characters.
fn covers(name: &str, module: &str) -> bool {
    let wanted: Vec<&str> = name.split('.').collect();
    let parts: Vec<&str> = module.split('.').collect();
    let mut runs = parts.windows(wanted.len());
    runs.any(|run| {
        run.iter()
            .zip(&wanted)
            .all(|(part, wanted)| matches(wanted, part))
    })
}

/// Whether `text` is `pattern`, in which each `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.into_iter().any(|at| matches(rest, &text[at..]))
        }),
    }
}

/// Refuses a name that covers none of the tensors that it could be meant for.
fn check_names<'n>(
    plan: &[TensorPlan],
    mut names: impl Iterator<Item = &'n String>,
    candidate: impl Fn(&TensorPlan) -> bool,
) -> Result<(), CompressError> {
    let modules: Vec<&str> = plan.iter().filter(|t| candidate(t)).map(module).collect();
    let unknown = names.find(|name| !modules.iter().any(|module| covers(name, module)));
    match unknown {
        None => Ok(()),
        Some(name) => Err(CompressError::UnknownName {
            name: name.clone(),
            near: near(name, &modules),
        }),
    }
}

/// The names most like `name`, of as many parts.
fn near(name: &str, modules: &[&str]) -> Vec<String> {
    let count = name.split('.').count();
    let mut runs: Vec<String> = Vec::new();
    for module in modules {
        let parts: Vec<&str> = module.split('.').collect();
        // Where the name has more parts than any, the whole names are all there is.
        for run in parts.windows(count.min(parts.len())) {
            let run = run.join(".");
            // A layer's number alone says nothing.
            if !run.chars().all(|c| c.is_ascii_digit()) && !runs.contains(&run) {
                runs.push(run);
            }
        }
    }
    runs.sort_by_cached_key(|run| distance(name, run));
    runs.truncate(NEAR);
    runs
}

/// Characters to insert, delete or change to make one text of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &to) in b.iter().enumerate() {
            let change = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "model.layers.12.self_attn.q_proj";

    #[test]
    fn names_are_consecutive_parts() {
        for name in [
            MODULE,
            "q_proj",
            "layers.12",
            "12",
            "self_attn",
            "layers.*.self_attn",
            "layers.1*",
            "*_proj",
            "model.layers.*2.s*n.q*",
            "*",
        ] {
            assert!(covers(name, MODULE), "{name}");
        }
        for name in [
            "proj",
            "layers.1",
            "layers.q_proj",
            "self_attn.k_proj",
            "",
            "model.layers.12.self_attn.q_proj.weight",
            "layers.*.mlp",
            "2*",
            "q_proj*x",
        ] {
            assert!(!covers(name, MODULE), "{name}");
        }
    }

    #[test]
    fn near_names_have_few_changes() {
        assert_eq!(distance("down_proj", "dwn_proj"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        let modules = [
            MODULE,
            "model.layers.1.mlp.down_proj",
            "model.layers.1.mlp.up_proj",
        ];
        assert_eq!(near("mlp.dwn_proj", &modules)[0], "mlp.down_proj");
        assert_eq!(near("lay.1", &modules)[0], "layers.1");
        assert_eq!(near("qproj", &modules)[0], "q_proj");
        assert_eq!(near("a.b.c.d.e.f.g", &modules).len(), 3);
    }
}
