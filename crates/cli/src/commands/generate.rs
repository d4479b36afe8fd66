//! `tunesmith generate`: continues prompts, or holds a conversation.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Read, Write};

use anyhow::Context;
use serde_json::json;
use tunesmith_methods::BuiltAdapter;
use tunesmith_models::{
    BeamSearch, EarlyStopping, FinishReason, Generated, GenerationOptions, Message, Sampling, Task, beam_search,
    generate,
};
use tunesmith_tensor::{Seed, Workspace};

use crate::base::{Base, tuners};
use crate::failure::Misuse;
use crate::generate_args::{EarlyStoppingArg, GenerateArgs, SamplingArgs};
use crate::terminal;

pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let (sampling, beams) = (sampling(&args.sampling)?, beams(&args.sampling)?);
    let prompts = prompts(args)?;
    let (base, adapter) = Base::from_args(&args.model, args.arithmetic.precision())?;
    base.require(&[Task::CausalLm, Task::Seq2SeqLm])?;
    let options = GenerationOptions {
        sampling,
        stop: args.sampling.stop.clone(),
        seed: Seed(args.sampling.seed),
        ..GenerationOptions::greedy(args.sampling.max_new_tokens, &base.pretrained.generation)
    };
    let workspace = base.workspace();
    let texts = args.sampling.num_return_sequences;
    let generator = Generator { base: &base, adapter: &adapter, options, beams, texts, workspace };
    let system = args.system.as_deref();
    let Some(prompts) = prompts else {
        if texts > 1 {
            return Err(
                Misuse("a conversation has one answer to a message: leave --num-return-sequences".into()).into()
            );
        }
        return generator.converse(system);
    };
    let encoded: Vec<Vec<u32>> = prompts
        .iter()
        .map(
            |prompt| if args.chat { generator.encode_chat(&opening(system, prompt)) } else { generator.encode(prompt) },
        )
        .collect::<anyhow::Result<_>>()?;
    match &encoded[..] {
        [prompt] if !args.json && texts == 1 => {
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
        no_repeat_ngram_size: args.no_repeat_ngram_size,
    };
    let mut problems = sampling.problems();
    let filters = args.top_k != 0 || args.top_p != 1.0 || args.min_p != 0.0;
    if filters && args.temperature == 0.0 {
        problems.push("top_k, top_p and min_p need a temperature above 0, such as --temperature 1".to_owned());
    }
    if problems.is_empty() { Ok(sampling) } else { Err(Misuse(problems.join("; ")).into()) }
}

/// The settings of beam search; `None` for one token after the other.
fn beams(args: &SamplingArgs) -> anyhow::Result<Option<BeamSearch>> {
    let early_stopping = match args.early_stopping {
        EarlyStoppingArg::True => EarlyStopping::AtOnce,
        EarlyStoppingArg::False => EarlyStopping::Heuristic,
        EarlyStoppingArg::Never => EarlyStopping::Never,
    };
    let (num_beams, num_return_sequences) = (args.num_beams, args.num_return_sequences);
    let beams = BeamSearch { num_beams, length_penalty: args.length_penalty, early_stopping, num_return_sequences };
    let is_drawn = args.temperature > 0.0;
    let mut problems = Vec::new();
    if num_beams == 1 {
        if num_return_sequences == 0 {
            problems.push("num_return_sequences is 0, but must be at least 1".to_owned());
        }
        if num_return_sequences > 1 && !is_drawn {
            problems.push("several texts need --num-beams or a temperature above 0".to_owned());
        }
        if args.length_penalty != 1.0 || early_stopping != EarlyStopping::Heuristic {
            problems.push("length_penalty and early_stopping need beams, such as --num-beams 4".to_owned());
        }
    } else {
        problems.extend(beams.problems());
        if is_drawn {
            problems.push("beams are searched, not drawn: leave the temperature at 0".to_owned());
        }
    }
    match problems[..] {
        [] => Ok((num_beams > 1).then_some(beams)),
        _ => Err(Misuse(problems.join("; ")).into()),
    }
}

fn opening(system: Option<&str>, user: &str) -> Vec<Message> {
    let system = system.map(|text| Message::new("system", text));
    system.into_iter().chain([Message::new("user", user)]).collect()
}

struct Generator<'a> {
    base: &'a Base,
    adapter: &'a Option<BuiltAdapter>,
    options: GenerationOptions,
    beams: Option<BeamSearch>,
    /// Texts for each prompt.
    texts: usize,
    workspace: Workspace,
}

/// A text, with its score where it comes from beam search.
type Scored = (Generated, Option<f32>);

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
        let mut out = io::stdout();
        if self.beams.is_some() {
            let found = self.texts(&[prompt.to_vec()]).into_iter().flatten().next();
            let (generated, _) = found.context("a prompt has a continuation")?;
            out.write_all(generated.text.as_bytes())?;
            return Ok(generated);
        }
        let mut written = Ok(());
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
        let texts = prompts.iter().zip(self.texts(encoded));
        for (prompt, (generated, score)) in
            texts.flat_map(|(prompt, texts)| texts.into_iter().map(move |text| (prompt, text)))
        {
            if as_json {
                let finish = match generated.finish {
                    FinishReason::EndOfSequence | FinishReason::Stop => "stop",
                    FinishReason::Length => "length",
                };
                let mut line = json!({"prompt": prompt, "text": generated.text, "finish_reason": finish});
                if let Some(score) = score {
                    line["score"] = json!(score);
                }
                writeln!(out, "{line}")?;
            } else {
                writeln!(out, "> {prompt}\n{}\n", generated.text)?;
            }
        }
        Ok(())
    }

    /// The texts of each prompt.
    fn texts(&self, prompts: &[Vec<u32>]) -> Vec<Vec<Scored>> {
        let Base { pretrained, .. } = self.base;
        if let Some(beams) = &self.beams {
            let adapters = vec![tuners(self.adapter); prompts.len()];
            let (model, tokenizer) = (pretrained.model.as_ref(), &pretrained.tokenizer);
            let found = beam_search(model, tokenizer, &self.workspace, prompts, &adapters, &self.options, beams);
            let scored = |(generated, score)| (generated, Some(score));
            return found.into_iter().map(|found| found.into_iter().map(scored).collect()).collect();
        }
        let repeated: Vec<Vec<u32>> =
            prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt.clone(), self.texts)).collect();
        let mut drawn = self.generate(&repeated, |_, _| {}).into_iter().map(|generated| (generated, None));
        prompts.iter().map(|_| drawn.by_ref().take(self.texts).collect()).collect()
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
            no_repeat_ngram_size: 0,
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStoppingArg::False,
            num_return_sequences: 1,
            stop: Vec::new(),
            seed: 0,
        }
    }

    #[test]
    fn beams_that_cannot_be_are_refused() {
        let beam_args = |num_beams, num_return_sequences, temperature| SamplingArgs {
            num_beams,
            num_return_sequences,
            ..args(temperature, 1.0)
        };
        assert_eq!(beams(&beam_args(1, 3, 0.7)).unwrap(), None);
        let four = BeamSearch { num_return_sequences: 2, ..BeamSearch::new(4) };
        assert_eq!(beams(&beam_args(4, 2, 0.0)).unwrap(), Some(four));
        let refusal = |args: &SamplingArgs| beams(args).unwrap_err().to_string();
        assert!(refusal(&beam_args(1, 3, 0.0)).contains("--num-beams"));
        assert!(refusal(&beam_args(2, 3, 0.0)).contains("only 2 beams"));
        assert!(refusal(&beam_args(2, 1, 0.5)).contains("not drawn"));
        assert!(refusal(&SamplingArgs { length_penalty: 2.0, ..args(0.0, 1.0) }).contains("need beams"));
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
