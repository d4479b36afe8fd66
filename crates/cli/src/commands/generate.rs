//! `tunesmith generate`: continues prompts, or holds a conversation.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Read, Write};

use anyhow::Context;
use serde_json::json;
use tunesmith_methods::BuiltAdapter;
use tunesmith_models::{FinishReason, Generated, GenerationOptions, Message, Sampling, generate};
use tunesmith_tensor::{Seed, Workspace};

use crate::args::{GenerateArgs, SamplingArgs};
use crate::base::{Base, tuners};
use crate::failure::Misuse;
use crate::terminal;

pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let sampling = sampling(&args.sampling)?;
    let prompts = prompts(args)?;
    let (base, adapter) = Base::from_args(&args.model)?;
    let options = GenerationOptions {
        max_new_tokens: args.sampling.max_new_tokens,
        sampling,
        stop: args.sampling.stop.clone(),
        eos_token_ids: base.pretrained.generation.eos_token_ids.clone(),
        seed: Seed(args.sampling.seed),
    };
    let generator = Generator { base: &base, adapter: &adapter, options, workspace: Workspace::new() };
    let system = args.system.as_deref();
    let Some(prompts) = prompts else { return generator.converse(system) };
    let encoded: Vec<Vec<u32>> = prompts
        .iter()
        .map(
            |prompt| if args.chat { generator.encode_chat(&opening(system, prompt)) } else { generator.encode(prompt) },
        )
        .collect::<anyhow::Result<_>>()?;
    match &encoded[..] {
        [prompt] if !args.json => {
            generator.stream(prompt)?;
            writeln!(io::stdout())?;
            Ok(())
        }
        _ => generator.batch(&prompts, &encoded, args.json),
    }
}

/// The prompts of the command line; `None` for a conversation.
fn prompts(args: &GenerateArgs) -> anyhow::Result<Option<Vec<String>>> {
    if let Some(file) = &args.prompts_file {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let prompts: Vec<String> = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
        return if prompts.is_empty() {
            Err(Misuse(format!("{} holds no prompt", file.display())).into())
        } else {
            Ok(Some(prompts))
        };
    }
    if !args.prompts.is_empty() {
        return Ok(Some(args.prompts.clone()));
    }
    if args.chat {
        return Ok(None);
    }
    if io::stdin().is_terminal() {
        return Err(Misuse("give a prompt, or --chat for a conversation".into()).into());
    }
    let mut prompt = String::new();
    io::stdin().read_to_string(&mut prompt).context("cannot read the prompt from standard input")?;
    // `echo` ends its output with a line break, which is not meant as part of the prompt.
    let prompt = prompt.strip_suffix('\n').unwrap_or(&prompt);
    Ok(Some(vec![prompt.to_owned()]))
}

fn sampling(args: &SamplingArgs) -> anyhow::Result<Sampling> {
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
    };
    let mut problems = sampling.problems();
    let filters = args.top_k != 0 || args.top_p != 1.0 || args.min_p != 0.0;
    if filters && args.temperature == 0.0 {
        problems.push("top_k, top_p and min_p need a temperature above 0, such as --temperature 1".to_owned());
    }
    if problems.is_empty() { Ok(sampling) } else { Err(Misuse(problems.join("; ")).into()) }
}

fn opening(system: Option<&str>, user: &str) -> Vec<Message> {
    let system = system.map(|text| Message::new("system", text));
    system.into_iter().chain([Message::new("user", user)]).collect()
}

struct Generator<'a> {
    base: &'a Base,
    adapter: &'a Option<BuiltAdapter>,
    options: GenerationOptions,
    workspace: Workspace,
}

impl Generator<'_> {
    fn encode(&self, prompt: &str) -> anyhow::Result<Vec<u32>> {
        let mut ids = self.base.pretrained.tokenizer.encode(prompt, true)?;
        if ids.is_empty() {
            ids.extend(self.base.pretrained.generation.bos_token_id);
        }
        self.checked(ids, prompt)
    }

    fn encode_chat(&self, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
        let tokenizer = &self.base.pretrained.tokenizer;
        let text = tokenizer.render(messages, true)?;
        self.checked(tokenizer.encode(&text, false)?, &text)
    }

    fn checked(&self, ids: Vec<u32>, prompt: &str) -> anyhow::Result<Vec<u32>> {
        let context = self.base.model().info().max_positions;
        if ids.is_empty() {
            return Err(Misuse("the prompt is empty, and this model has no token that begins a text".into()).into());
        }
        if ids.len() >= context {
            let begin: String = prompt.chars().take(40).collect();
            let length = ids.len();
            return Err(Misuse(format!(
                "the prompt '{begin} …' has {length} tokens, but the model takes {context}: shorten it"
            ))
            .into());
        }
        Ok(ids)
    }

    /// Writes one continuation to standard output as it comes.
    fn stream(&self, prompt: &[u32]) -> anyhow::Result<Generated> {
        let mut written = Ok(());
        let mut out = io::stdout();
        let mut generated = self.generate(&[prompt.to_vec()], |_, piece| {
            if written.is_ok() {
                written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
            }
        });
        written?;
        generated.pop().context("a prompt has one continuation")
    }

    fn batch(&self, prompts: &[String], encoded: &[Vec<u32>], as_json: bool) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        for (prompt, generated) in prompts.iter().zip(self.generate(encoded, |_, _| {})) {
            if as_json {
                let finish = match generated.finish {
                    FinishReason::EndOfSequence | FinishReason::Stop => "stop",
                    FinishReason::Length => "length",
                };
                let line = json!({"prompt": prompt, "text": generated.text, "finish_reason": finish});
                writeln!(out, "{line}")?;
            } else {
                writeln!(out, "> {prompt}\n{}\n", generated.text)?;
            }
        }
        Ok(())
    }

    fn generate(&self, prompts: &[Vec<u32>], on_text: impl FnMut(usize, &str)) -> Vec<Generated> {
        let Base { pretrained, .. } = self.base;
        let adapters = vec![tuners(self.adapter); prompts.len()];
        let model = pretrained.model.as_ref();
        generate(model, &pretrained.tokenizer, &self.workspace, prompts, &adapters, &self.options, on_text)
    }

    /// Reads a message a line from standard input and answers, until the input ends.
    fn converse(&self, system: Option<&str>) -> anyhow::Result<()> {
        let watched = io::stdin().is_terminal();
        if watched {
            terminal::note("A message a line; /reset begins anew, Ctrl-D ends.");
        }
        let begin: Vec<Message> = system.map(|text| Message::new("system", text)).into_iter().collect();
        let mut messages = begin.clone();
        let mut lines = io::stdin().lock().lines();
        loop {
            if watched {
                let _ = write!(io::stderr(), "> ");
            }
            let Some(line) = lines.next().transpose().context("cannot read standard input")? else { return Ok(()) };
            match line.trim() {
                "" => continue,
                "/reset" => {
                    messages.clone_from(&begin);
                    continue;
                }
                text => messages.push(Message::new("user", text)),
            }
            let answer = match self.encode_chat(&messages) {
                Ok(prompt) => self.stream(&prompt)?,
                Err(error) if error.is::<Misuse>() => {
                    terminal::note("The conversation is longer than the model's context: /reset begins anew.");
                    messages.pop();
                    continue;
                }
                Err(error) => return Err(error),
            };
            writeln!(io::stdout())?;
            messages.push(Message::new("assistant", answer.text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(temperature: f32, top_p: f32) -> SamplingArgs {
        SamplingArgs {
            max_new_tokens: 1,
            temperature,
            top_k: 0,
            top_p,
            min_p: 0.0,
            repetition_penalty: 1.0,
            stop: Vec::new(),
            seed: 0,
        }
    }

    #[test]
    fn options_that_cannot_be_or_do_nothing_are_refused() {
        assert_eq!(sampling(&args(0.0, 1.0)).unwrap(), Sampling::default());
        assert!(sampling(&args(0.0, 0.9)).unwrap_err().to_string().contains("--temperature"));
        assert!(sampling(&args(1.0, 1.5)).unwrap_err().to_string().contains("top_p is 1.5"));
    }

    #[test]
    fn a_conversation_opens_with_the_system_message() {
        assert_eq!(opening(Some("s"), "u"), [Message::new("system", "s"), Message::new("user", "u")]);
        assert_eq!(opening(None, "u"), [Message::new("user", "u")]);
    }
}
