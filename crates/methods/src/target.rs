//! Which modules a configuration means: PEFT's rules for `target_modules`, `exclude_modules`, `layers_to_transform`,
//! `layers_pattern` and `modules_to_save`.

use std::collections::BTreeSet;

use tunesmith_tensor::{Role, SiteId, SiteKind};

use crate::common::{Modules, OneOrMany, Purpose};
use crate::error::UnmatchedEntry;
use crate::nearest::nearest;
use crate::pattern::Pattern;
use crate::{MethodError, ModelDescription};

/// From this many entries on, PEFT reduces a list of targets to suffixes.
const LONG_LIST: usize = 20;

/// The keys that choose the modules to tune.
pub(crate) struct Targeting<'c> {
    pub(crate) target_modules: &'c Modules,
    /// What kinds of site the method can act on.
    pub(crate) kinds: &'c [SiteKind],
    pub(crate) exclude_modules: Option<&'c Modules>,
    pub(crate) layers_to_transform: Option<&'c OneOrMany<usize>>,
    pub(crate) layers_pattern: Option<&'c OneOrMany<String>>,
    pub(crate) modules_to_save: &'c [String],
}

/// The modules to tune.
#[derive(Debug)]
pub(crate) struct Targets {
    /// Sites of those kinds, in the model's order.
    pub(crate) sites: Vec<SiteId>,
    pub(crate) warnings: Vec<String>,
}

/// The targets as the saved configuration names them: the defaults of the model type where there are none, names in
/// place of `all-linear`, and suffixes in place of a long list.
pub(crate) fn resolve(
    targets: Option<&Modules>,
    defaults: Option<Modules>,
    model: &ModelDescription<'_>,
    purpose: Purpose,
) -> Result<Modules, MethodError> {
    let names = match targets {
        None => {
            let defaults = defaults.ok_or_else(|| MethodError::NoDefaultTargets {
                model_type: model.model_type.to_owned(),
                linears: last_names(model),
            })?;
            return Ok(of_model(defaults, model));
        }
        Some(Modules::Pattern(pattern)) if pattern.eq_ignore_ascii_case("all-linear") => {
            let linears = model.weight_sites().filter(|(_, site)| {
                site.kind == SiteKind::Linear && !matches!(site.role, Role::OutputEmbedding | Role::Head)
            });
            linears.map(|(_, site)| site.path.clone()).collect()
        }
        Some(Modules::Pattern(pattern)) => return Ok(Modules::Pattern(pattern.clone())),
        Some(Modules::Names(names)) => {
            if purpose == Purpose::Training {
                check_entries("target_modules", names, model, names_module)?;
            }
            names.clone()
        }
    };
    Ok(Modules::Names(if names.len() < LONG_LIST { names } else { shortened(names, &model.modules()) }))
}

/// Default targets without the names that a member of a family of models has not; all of them where it has none.
fn of_model(defaults: Modules, model: &ModelDescription<'_>) -> Modules {
    let Modules::Names(names) = &defaults else { return defaults };
    let modules = model.modules();
    let has = |name: &&String| modules.iter().any(|module| names_module(name, module));
    let kept: Vec<String> = names.iter().filter(has).cloned().collect();
    if kept.is_empty() { defaults } else { Modules::Names(kept) }
}

/// Whether an entry of a list of targets means a module.
fn names_module(entry: &str, module: &str) -> bool {
    module.strip_suffix(entry).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The shortest suffixes that mean the same of the model's modules as `names`, if they are fewer.
fn shortened(names: Vec<String>, modules: &BTreeSet<&str>) -> Vec<String> {
    let others = modules.iter().filter(|module| !names.iter().any(|name| names_module(name, module)));
    let other_suffixes: BTreeSet<&str> = others.flat_map(|module| suffixes(module)).collect();
    let mut by_suffixes: Vec<(Vec<&str>, &String)> =
        names.iter().map(|name| (suffixes(name).collect(), name)).collect();
    by_suffixes.sort();
    let mut chosen: BTreeSet<String> = BTreeSet::new();
    for (suffixes, name) in by_suffixes {
        let covered = chosen.iter().any(|suffix| name != suffix && names_module(suffix, name));
        let free = suffixes.into_iter().find(|suffix| !chosen.contains(*suffix) && !other_suffixes.contains(suffix));
        if let Some(suffix) = free.filter(|_| !covered) {
            chosen.insert(suffix.to_owned());
        }
    }
    let distinct: BTreeSet<&String> = names.iter().collect();
    if chosen.is_empty() || chosen.len() >= distinct.len() { names } else { chosen.into_iter().collect() }
}

/// The ends of a name at its dots, the shortest first.
fn suffixes(name: &str) -> impl Iterator<Item = &str> {
    name.rmatch_indices('.').map(|(dot, _)| &name[dot + 1..]).chain([name])
}

/// Finds the modules to tune, which must be linear.
pub(crate) fn select(
    targeting: &Targeting<'_>,
    model: &ModelDescription<'_>,
    purpose: Purpose,
) -> Result<Targets, MethodError> {
    let matcher = Matcher::new(targeting)?;
    let nothing = |reason: String| MethodError::NothingTargeted { model_type: model.model_type.to_owned(), reason };
    if targeting.target_modules.is_empty() {
        return Err(nothing("target_modules is empty".into()));
    }
    let (mut targeted, mut excluded) = (BTreeSet::new(), 0);
    let (mut in_layers, mut unmatched) = (BTreeSet::new(), 0);
    for module in model.modules() {
        match matcher.verdict(module)? {
            Verdict::Targeted => {
                targeted.insert(module);
            }
            Verdict::OtherLayer => {}
            Verdict::Excluded => excluded += 1,
            Verdict::Unmatched => unmatched += 1,
        }
        in_layers.extend(matcher.layer_of_match(module)?);
    }
    if targeted.is_empty() {
        return Err(nothing(why_nothing(targeting, model, &in_layers, excluded, unmatched)));
    }
    check_layers(targeting, &in_layers, purpose)?;
    let sites: Vec<SiteId> = model
        .weight_sites()
        .filter(|(_, site)| targeting.kinds.contains(&site.kind) && targeted.remove(site.path.as_str()))
        .map(|(id, _)| id)
        .collect();
    if !targeted.is_empty() {
        let modules = targeted.into_iter().map(|module| describe(module, model)).collect();
        return Err(MethodError::NotTunable { kinds: plural(targeting.kinds), modules });
    }
    let mut warnings = Vec::new();
    if excluded == 0 && targeting.exclude_modules.is_some_and(|modules| !modules.is_empty()) {
        warnings.push("exclude_modules excludes no module of this model".to_owned());
    }
    Ok(Targets { sites, warnings })
}

fn why_nothing(
    targeting: &Targeting<'_>,
    model: &ModelDescription<'_>,
    in_layers: &BTreeSet<usize>,
    excluded: usize,
    unmatched: usize,
) -> String {
    let targets = match targeting.target_modules {
        Modules::Names(names) => format!("{names:?}"),
        Modules::Pattern(pattern) => format!("'{pattern}', which must match whole names such as '{}',", example(model)),
    };
    if let (Some(layers), false) = (targeting.layers_to_transform, in_layers.is_empty()) {
        return format!("target_modules match in layers {in_layers:?}, layers_to_transform is {:?}", layers.as_slice());
    }
    if excluded > 0 {
        let all = if unmatched == 0 { "all modules are" } else { "what they would match is" };
        return format!("target_modules are {targets} and {all} in exclude_modules or modules_to_save");
    }
    format!("target_modules are {targets} and match nothing. The linear modules are {}", last_names(model).join(", "))
}

/// In training, every layer asked for must hold a target.
fn check_layers(targeting: &Targeting<'_>, in_layers: &BTreeSet<usize>, purpose: Purpose) -> Result<(), MethodError> {
    let Some(asked) = targeting.layers_to_transform.filter(|_| purpose == Purpose::Training) else { return Ok(()) };
    let layers: Vec<usize> = asked.as_slice().iter().copied().filter(|layer| !in_layers.contains(layer)).collect();
    if layers.is_empty() {
        return Ok(());
    }
    Err(MethodError::UnmatchedLayers { layers, present: in_layers.iter().copied().collect() })
}

/// Kinds of site, in words.
fn plural(kinds: &[SiteKind]) -> String {
    let words: Vec<&str> = kinds
        .iter()
        .map(|kind| match kind {
            SiteKind::Linear => "linear layers",
            SiteKind::Embedding => "embeddings",
            _ => "norms",
        })
        .collect();
    words.join(" and ")
}

/// What a module is that cannot be targeted.
fn describe(module: &str, model: &ModelDescription<'_>) -> String {
    let kind = model.weight_sites().find(|(_, site)| site.path == module).map(|(_, site)| site.kind);
    match kind {
        Some(SiteKind::Embedding) => format!("{module} (an embedding)"),
        Some(SiteKind::Norm) => format!("{module} (a norm)"),
        Some(SiteKind::Linear) => format!("{module} (a linear layer)"),
        _ => format!("{module} (holds other modules: name those)"),
    }
}

/// Last names of the linear modules.
fn last_names(model: &ModelDescription<'_>) -> Vec<String> {
    let linears = model.weight_sites().filter(|(_, site)| site.kind == SiteKind::Linear);
    let names: BTreeSet<&str> = linears.filter_map(|(_, site)| site.path.rsplit('.').next()).collect();
    names.into_iter().map(str::to_owned).collect()
}

fn example<'a>(model: &ModelDescription<'a>) -> &'a str {
    model.weight_sites().find(|(_, site)| site.kind == SiteKind::Linear).map_or("", |(_, site)| &site.path)
}

/// Checks that every entry of a list means some module.
pub(crate) fn check_entries(
    key: &'static str,
    entries: &[String],
    model: &ModelDescription<'_>,
    means: fn(&str, &str) -> bool,
) -> Result<(), MethodError> {
    let modules = model.modules();
    let unmatched = entries.iter().filter(|entry| !modules.iter().any(|module| means(entry, module)));
    let unmatched: Vec<UnmatchedEntry> = unmatched
        .map(|entry| {
            let segments = entry.split('.').count();
            let ends = modules.iter().filter_map(|module| suffixes(module).nth(segments - 1));
            let near = nearest(entry, ends, 3).into_iter().map(str::to_owned).collect();
            UnmatchedEntry { entry: entry.clone(), nearest: near }
        })
        .collect();
    if unmatched.is_empty() {
        return Ok(());
    }
    Err(MethodError::UnmatchedModules { key, model_type: model.model_type.to_owned(), entries: unmatched })
}

/// What the configuration says of one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Targeted,
    Excluded,
    /// A target, but in a layer that is not to be transformed.
    OtherLayer,
    Unmatched,
}

struct Matcher<'c> {
    targets: Matching<'c>,
    exclude: Option<Matching<'c>>,
    saved: Vec<Pattern>,
    layers: Option<Layers<'c>>,
}

enum Matching<'c> {
    Names(&'c [String]),
    Pattern(Pattern),
}

struct Layers<'c> {
    wanted: &'c [usize],
    /// Tried in turn; the group `idx` is the layer.
    patterns: Vec<Pattern>,
}

impl<'c> Matcher<'c> {
    fn new(targeting: &Targeting<'c>) -> Result<Self, MethodError> {
        let exclude = targeting.exclude_modules.filter(|modules| !modules.is_empty());
        let saved = targeting
            .modules_to_save
            .iter()
            .map(|name| Pattern::start("modules_to_save", name, &format!(r"(^|.*\.){name}($|\..*)")));
        let layers = targeting.layers_to_transform.filter(|layers| !layers.as_slice().is_empty());
        Ok(Self {
            targets: Matching::new("target_modules", targeting.target_modules)?,
            exclude: exclude.map(|modules| Matching::new("exclude_modules", modules)).transpose()?,
            saved: saved.collect::<Result<_, _>>()?,
            layers: layers.map(|layers| Layers::new(layers.as_slice(), targeting.layers_pattern)).transpose()?,
        })
    }

    fn verdict(&self, module: &str) -> Result<Verdict, MethodError> {
        if let Some(exclude) = &self.exclude
            && exclude.matches(module)?
        {
            return Ok(Verdict::Excluded);
        }
        for saved in &self.saved {
            if saved.matches(module)? {
                return Ok(Verdict::Excluded);
            }
        }
        if !self.targets.matches(module)? {
            return Ok(Verdict::Unmatched);
        }
        // A module that is named in full is meant whatever its layer.
        let Some(layers) = self.layers.as_ref().filter(|_| !self.targets.names_exactly(module)) else {
            return Ok(Verdict::Targeted);
        };
        let is_wanted = layers.layer_of(module)?.is_some_and(|layer| layers.wanted.contains(&layer));
        Ok(if is_wanted { Verdict::Targeted } else { Verdict::OtherLayer })
    }

    /// The layer of a module that the targets match, where layers count.
    fn layer_of_match(&self, module: &str) -> Result<Option<usize>, MethodError> {
        let Some(layers) = &self.layers else { return Ok(None) };
        if self.targets.matches(module)? { layers.layer_of(module) } else { Ok(None) }
    }
}

impl<'c> Matching<'c> {
    fn new(key: &'static str, modules: &'c Modules) -> Result<Self, MethodError> {
        match modules {
            Modules::Names(names) => Ok(Self::Names(names)),
            Modules::Pattern(pattern) => Pattern::full(key, pattern).map(Self::Pattern),
        }
    }

    fn matches(&self, module: &str) -> Result<bool, MethodError> {
        match self {
            Self::Names(names) => Ok(names.iter().any(|name| names_module(name, module))),
            Self::Pattern(pattern) => pattern.matches(module),
        }
    }

    fn names_exactly(&self, module: &str) -> bool {
        matches!(self, Self::Names(names) if names.iter().any(|name| name == module))
    }
}

impl<'c> Layers<'c> {
    fn new(wanted: &'c [usize], pattern: Option<&OneOrMany<String>>) -> Result<Self, MethodError> {
        let names = pattern.map_or(&[][..], OneOrMany::as_slice);
        let names: Vec<&String> = names.iter().filter(|name| !name.is_empty()).collect();
        let patterns = if names.is_empty() {
            vec![Pattern::start("layers_pattern", "", r".*?\.[^.]*\.(?P<idx>\d+)\.")?]
        } else {
            let pattern =
                |name: &&String| Pattern::start("layers_pattern", name, &format!(r"(?:^|.*?\.){name}\.(?P<idx>\d+)\."));
            names.iter().map(pattern).collect::<Result<_, _>>()?
        };
        Ok(Self { wanted, patterns })
    }

    /// The index of the layer that a module lies in.
    fn layer_of(&self, module: &str) -> Result<Option<usize>, MethodError> {
        for pattern in &self.patterns {
            if let Some(index) = pattern.capture(module, "idx")? {
                return Ok(index.parse().ok());
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_entry_means_a_module_by_its_end_at_a_dot() {
        assert!(names_module("q_proj", "model.layers.0.q_proj"));
        assert!(names_module("q_proj", "q_proj"));
        assert!(!names_module("proj", "model.q_proj"));
        assert!(!names_module("model.q_proj", "q_proj"));
    }

    #[test]
    fn long_lists_become_suffixes() {
        let path = |layer: usize, name: &str| format!("model.layers.{layer}.{name}");
        let all = |name: &str| (0..10).map(|layer| path(layer, name)).collect::<Vec<_>>();
        let modules = [all("q_proj"), all("k_proj"), all("v_proj")].concat();
        let modules: BTreeSet<&str> = modules.iter().map(String::as_str).chain(["model", "model.layers"]).collect();
        assert_eq!(shortened([all("q_proj"), all("v_proj")].concat(), &modules), ["q_proj", "v_proj"]);
        let mixed = [all("q_proj"), vec![path(3, "v_proj")]].concat();
        assert_eq!(shortened(mixed, &modules), ["3.v_proj", "q_proj"]);
    }

    /// Names of two or three short segments over a small alphabet, so that chance matches are common.
    fn names() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec(prop::collection::vec("[ab]{1,2}", 1..4), 1..30)
            .prop_map(|names| names.into_iter().map(|segments| segments.join(".")).collect())
    }

    proptest! {
        #[test]
        fn entries_match_whole_segments_at_the_end(entries in names(), modules in names()) {
            for (entry, module) in entries.iter().flat_map(|entry| modules.iter().map(move |module| (entry, module))) {
                let (entry_parts, parts): (Vec<_>, Vec<_>) = (entry.split('.').collect(), module.split('.').collect());
                prop_assert_eq!(names_module(entry, module), parts.ends_with(&entry_parts));
            }
        }

        #[test]
        fn shortening_selects_the_same_modules(chosen in names(), others in names()) {
            let modules: BTreeSet<&str> = chosen.iter().chain(&others).map(String::as_str).collect();
            let selected = |entries: &[String]| -> Vec<&str> {
                let means = |module: &&&str| entries.iter().any(|entry| names_module(entry, module));
                modules.iter().filter(means).copied().collect()
            };
            let short = shortened(chosen.clone(), &modules);
            prop_assert!(short.len() <= chosen.len());
            prop_assert_eq!(selected(&short), selected(&chosen));
        }
    }
}
