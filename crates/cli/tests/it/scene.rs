//! A folder with a tiny model and data, in which the program runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny-tokenizer");

/// A run that lasts long enough to be stopped in its midst, and whose every step draws dropout.
pub(crate) const RUN: &str = "\
model_name_or_path: model
output_dir: out
train_file: train.jsonl
validation_file: valid.jsonl
learning_rate: 1e-2
max_steps: 300
per_device_train_batch_size: 3
gradient_accumulation_steps: 2
warmup_steps: 5
logging_steps: 1
save_steps: 10
save_total_limit: 3
peft:
  peft_type: LORA
  r: 4
  lora_alpha: 8
  lora_dropout: 0.2
  target_modules: all-linear
";

/// The same, over in a moment.
pub(crate) const SHORT: &[&str] = &["max_steps=12", "save_steps=4", "peft.lora_dropout=0"];

pub(crate) struct Scene {
    folder: TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    fn new(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Checks the exit code and that standard error has all of `parts`.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, parts: &[&str]) {
        for part in parts {
            assert!(self.err.contains(part), "no {part:?} in:\n{}", self.err);
        }
        assert_eq!(self.code, Some(code), "{}", self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
    }

    /// Checks that the command went well, and returns what it printed.
    #[track_caller]
    pub(crate) fn succeeds(&self) -> &str {
        assert_eq!(self.code, Some(0), "{}", self.err);
        &self.out
    }
}

impl Scene {
    /// With the folder `model`, the data `train.jsonl` and `valid.jsonl`, and the configuration `run.yaml`.
    pub(crate) fn new() -> Self {
        let scene = Self { folder: tempfile::tempdir().unwrap() };
        let model = scene.path("model");
        fs::create_dir(&model).unwrap();
        for folder in [Path::new(REPOSITORY).join("fixtures/llama/model"), PathBuf::from(TOKENIZER)] {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
            }
        }
        let words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
        let line = |number: usize| {
            let (tens, ones) = (words[number / 10], words[number % 10]);
            format!("{{\"prompt\": \"{number:02} is \", \"completion\": \"{tens} {ones}\"}}\n")
        };
        scene.write("train.jsonl", &(0..36).map(line).collect::<String>());
        scene.write("valid.jsonl", &(40..48).map(line).collect::<String>());
        scene.write("run.yaml", RUN);
        scene
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    #[track_caller]
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    #[track_caller]
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Runs the program in the folder.
    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        Ended::new(&self.command(args).output().unwrap())
    }

    /// `train run.yaml`, short, with more arguments.
    pub(crate) fn train(&self, more: &[&str]) -> Ended {
        self.run(&[&["train", "run.yaml"], SHORT, more].concat())
    }

    /// Starts the program and waits until `file` is there.
    #[track_caller]
    pub(crate) fn start_until(&self, args: &[&str], file: &str) -> Running {
        let child = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut running = Running(child);
        let begin = Instant::now();
        while !self.path(file).exists() {
            if running.0.try_wait().unwrap().is_some() || begin.elapsed() > Duration::from_secs(120) {
                panic!("no {file}: {:?}", running.end());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        running
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunesmith"));
        self.settle(&mut command);
        command.args(args);
        command
    }

    /// Runs the program where no file may grow beyond `blocks` of 512 bytes, as on a disk that is full.
    pub(crate) fn run_on_full_disk(&self, blocks: usize, args: &[&str]) -> Ended {
        let mut command = Command::new("sh");
        self.settle(&mut command);
        // Without the signal, writing fails as it does on a full disk.
        command.args(["-c", "trap '' XFSZ; ulimit -f \"$1\"; shift; exec \"$@\"", "sh", &blocks.to_string()]);
        command.arg(env!("CARGO_BIN_EXE_tunesmith")).args(args);
        Ended::new(&command.output().unwrap())
    }

    fn settle(&self, command: &mut Command) {
        command.current_dir(self.folder.path());
        command.env("TUNESMITH_CACHE", self.path("cache")).env("HF_HOME", self.path("hub"));
        command.env("RAYON_NUM_THREADS", "2").env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    }
}

/// A started program.
pub(crate) struct Running(Child);

impl Running {
    /// Kills it, without a chance to tidy up.
    pub(crate) fn kill(mut self) -> Ended {
        self.0.kill().unwrap();
        self.end()
    }

    /// Presses Ctrl-C.
    pub(crate) fn interrupt(self) -> Ended {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        self.end()
    }

    fn end(self) -> Ended {
        Ended::new(&self.0.wait_with_output().unwrap())
    }
}
