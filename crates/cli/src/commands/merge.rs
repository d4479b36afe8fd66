//! `tunesmith merge`: base and adapter, or a base alone, as one Hugging Face model folder.

use std::collections::BTreeMap;
use std::io::{self, Write};

use tunesmith_methods::merged;
use tunesmith_models::{NumberFormat, save_folder, save_four_bit_folder};
use tunesmith_tensor::Precision;

use crate::args::{DtypeArg, MergeArgs};
use crate::base::Base;
use crate::terminal;

pub(crate) fn run(args: &MergeArgs) -> anyhow::Result<()> {
    let (base, adapter) = Base::from_args(&args.model, Precision::Float32)?;
    let weights = match &adapter {
        Some(built) => base.describe(|description| merged(&built.adapter, description))?,
        None => Vec::new(),
    };
    let count = weights.len();
    let mut replaced = BTreeMap::new();
    for merged in weights {
        let path = &base.model().sites()[merged.site.0].path;
        replaced.insert(format!("{path}.weight"), merged.weight);
        replaced.extend(merged.bias.map(|bias| (format!("{path}.bias"), bias)));
    }
    let format = match args.dtype {
        None => base.pretrained.format,
        Some(DtypeArg::F32) => NumberFormat::F32,
        Some(DtypeArg::F16) => NumberFormat::F16,
        Some(DtypeArg::Bf16) => NumberFormat::Bf16,
    };
    let tokenizer = &base.pretrained.tokenizer;
    let generation = &base.pretrained.generation;
    if args.requantize {
        let with = (format, args.model.quantization.keys().four_bit());
        let errors = save_four_bit_folder(&args.output, base.model(), Some(tokenizer), generation, &replaced, with)?;
        let mean = errors.iter().map(|error| error.relative).sum::<f64>() / errors.len().max(1) as f64;
        let worst = errors.iter().max_by(|a, b| a.relative.total_cmp(&b.relative));
        let worst = worst
            .map_or_else(String::new, |worst| format!(", at most {:.2} %, in {}", 100.0 * worst.relative, worst.name));
        terminal::note(format_args!(
            "merged {count} modules, saved in 4 bits: quantising moved {} weights by {:.2} % of their length on \
             average{worst}",
            errors.len(),
            100.0 * mean
        ));
    } else {
        save_folder(&args.output, base.model(), Some(tokenizer), generation, &replaced, format)?;
        terminal::note(format_args!("merged {count} modules, saved as {}", format.torch_name()));
    }
    writeln!(io::stdout(), "{}", args.output.display())?;
    Ok(())
}
