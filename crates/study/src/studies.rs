//! The studies that come with the program.

/// A study as a configuration.
#[derive(Clone, Copy, Debug)]
pub struct Study {
    /// Its name.
    pub name: &'static str,
    /// Its configuration, in YAML.
    pub text: &'static str,
}

macro_rules! studies {
    ($($name:literal),* $(,)?) => {
        &[$(Study { name: $name, text: include_str!(concat!("../studies/", $name, ".yaml")) }),*]
    };
}

/// All of them.
pub const STUDIES: &[Study] = studies![
    "methods",
    "methods-e2e",
    "lora-targets",
    "lora-rank",
    "lora-init",
    "prompt-length",
    "prefix-length",
    "prefix-data",
    "domain-shift",
    "icl",
    "dylora",
    "lora-plus",
    "qlora",
    "longlora",
    "intrinsic-dimension",
];

impl Study {
    /// The first line of its configuration: what it asks.
    pub fn question(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches(['#', ' '])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::{Plan, StudyFile};

    #[test]
    fn every_study_can_be_planned_and_quotes_a_paper() {
        for study in STUDIES {
            let values: Map<String, Value> =
                serde_saphyr::from_str(study.text).unwrap_or_else(|error| panic!("{}: {error}", study.name));
            let file = StudyFile::read(study.name, &values).unwrap_or_else(|error| panic!("{error}"));
            let plan = Plan::new(study.name, &file).unwrap_or_else(|error| panic!("{error}"));
            assert!(plan.rows.len() > 1 && !file.published.is_empty() && !file.title.is_empty(), "{}", study.name);
            assert!(
                study.question().ends_with('?') && study.question().len() < 100,
                "{}: {}",
                study.name,
                study.question()
            );
            Plan::new(study.name, &file.smoke()).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}
