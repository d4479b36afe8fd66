//! How the program ends: the exit code of an error.

use std::io;

use tunesmith_methods::MethodError;
use tunesmith_study::StudyError;
use tunesmith_train::TrainError;

/// The command, the configuration or a name in it cannot be used.
const MISUSE: u8 = 2;
/// Ctrl-C, as shells report it.
const INTERRUPTED: u8 = 130;
const FAILED: u8 = 1;

/// The user asked for something that cannot be: a wrong option, configuration or name.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misuse(pub(crate) String);

/// The user stopped the command; says how to go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Interrupted(pub(crate) String);

/// The exit code of an error: 2 for a wrong command or configuration, 130 after Ctrl-C, else 1.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    let code = |cause: &(dyn std::error::Error + 'static)| {
        if cause.is::<Interrupted>() {
            return Some(INTERRUPTED);
        }
        let train = cause.downcast_ref().is_some_and(|error| {
            use TrainError::{ConfigurationChanged, InvalidArguments, InvalidDataOptions, UnknownDataFile};
            matches!(
                error,
                InvalidArguments { .. }
                    | InvalidDataOptions { .. }
                    | UnknownDataFile { .. }
                    | ConfigurationChanged { .. }
            )
        });
        let method = cause.downcast_ref().is_some_and(|error| {
            use MethodError::{
                Clash, Config, Impossible, NoBias, NoDefaultTargets, NotTunable, NothingTargeted, Pattern, SavedList,
                TargetedAndSaved, UnmatchedLayers, UnmatchedModules,
            };
            matches!(
                error,
                Clash { .. }
                    | Config { .. }
                    | Impossible { .. }
                    | NoBias { .. }
                    | NoDefaultTargets { .. }
                    | NotTunable { .. }
                    | NothingTargeted { .. }
                    | Pattern { .. }
                    | SavedList { .. }
                    | TargetedAndSaved { .. }
                    | UnmatchedLayers { .. }
                    | UnmatchedModules { .. }
            )
        });
        let study = cause.downcast_ref().is_some_and(|error| {
            matches!(error, StudyError::Invalid { .. } | StudyError::Changed { .. } | StudyError::NoStudy { .. })
        });
        (train || method || study || cause.is::<Misuse>()).then_some(MISUSE)
    };
    error.chain().find_map(code).unwrap_or(FAILED)
}

/// An error with all its causes. Errors of libraries name their cause and are followed by it, too; it is said once.
pub(crate) fn told(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !message.ends_with(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

/// Whether the reader of the output has gone away, as `head` does: no failure of ours.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let closed = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(closed))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use anyhow::Context;
    use tunesmith_models::ModelError;

    use super::*;

    #[test]
    fn codes_are_found_below_contexts() {
        let code = |error: anyhow::Error| exit_code(&Err::<(), _>(error).context("while training").unwrap_err());
        assert_eq!(code(Misuse("no such model".into()).into()), 2);
        assert_eq!(code(TrainError::InvalidArguments { problems: Vec::new() }.into()), 2);
        assert_eq!(code(MethodError::NoDefaultTargets { model_type: "x".into(), linears: Vec::new() }.into()), 2);
        assert_eq!(code(Interrupted("stopped".into()).into()), 130);
        assert_eq!(code(MethodError::NotMergeable.into()), 1);
        assert_eq!(code(io::Error::other("disk").into()), 1);
    }

    #[test]
    fn the_reason_of_a_failure_is_told_once() {
        let full = || io::Error::other("the disk is full");
        let path = PathBuf::from("log.jsonl");
        let write = TrainError::Io { action: "write", path: path.clone(), source: full() };
        let read = StudyError::Train(ModelError::Read { path, source: full() }.into());
        for (error, expected) in [
            (write.into(), "while training: cannot write log.jsonl: the disk is full"),
            (read.into(), "while training: cannot read log.jsonl: the disk is full"),
            (full().into(), "while training: the disk is full"),
            (anyhow::Error::from(full()).context("the log"), "while training: the log: the disk is full"),
        ] {
            assert_eq!(told(&anyhow::Error::context(error, "while training")), expected);
        }
    }
}
