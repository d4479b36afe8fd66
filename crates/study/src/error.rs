//! What can go wrong with a study.

use std::path::PathBuf;

use thiserror::Error;
use tunesmith_models::ModelError;
use tunesmith_models::atomic::FileError;
use tunesmith_train::TrainError;

/// An error of this crate.
#[derive(Debug, Error)]
pub enum StudyError {
    /// A configuration that cannot be used, with all its problems.
    #[error("{origin} cannot be used:{}", listed(problems))]
    Invalid {
        /// The file, or what else it came from.
        origin: String,
        /// One sentence a problem.
        problems: Vec<String>,
    },

    /// Results that were made with another configuration.
    #[error(
        "{} was made with other settings ({differences}): choose another output_dir, or remove the file to run it again",
        path.display()
    )]
    Changed {
        /// The result.
        path: PathBuf,
        /// What differs.
        differences: String,
    },

    /// A file that this program writes holds something else.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A folder that holds no study.
    #[error("{} holds no study: there is no {file}", path.display())]
    NoStudy {
        /// The folder.
        path: PathBuf,
        /// What it lacks.
        file: &'static str,
    },

    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// A plot could not be turned into pixels.
    #[error("cannot draw {name}: {reason}")]
    Picture {
        /// The plot.
        name: String,
        /// Why.
        reason: String,
    },

    /// Data or evaluation failed.
    #[error(transparent)]
    Train(#[from] TrainError),

    /// The model or its tokenizer failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl StudyError {
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

impl From<FileError> for StudyError {
    fn from(FileError { action, path, source }: FileError) -> Self {
        Self::Io { action, path, source }
    }
}

fn listed(problems: &[String]) -> String {
    match problems {
        [only] => format!(" {only}"),
        all => all.iter().map(|problem| format!("\n  {problem}")).collect(),
    }
}
