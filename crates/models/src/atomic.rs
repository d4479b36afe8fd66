//! Files and folders that are written whole or not at all.
//!
//! Everything is written under a temporary name beside its place, forced to the disk, and then renamed: a crash, a full
//! disk or a failing writer leaves what was there before. A failure removes the temporary; a crash leaves it behind for
//! [`remove_leftovers`].

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// A file or folder that could not be written or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    /// What was tried: "write", "replace", "remove", …
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

impl FileError {
    fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self { action, path, source }
    }
}

/// Writes a file whole or not at all, in place of one that may be there.
///
/// # Errors
/// The file that was there is untouched then.
pub fn write_file(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    let temporary = Temporary::beside(path);
    let written = File::create(&temporary.path).and_then(|mut file| {
        io::Write::write_all(&mut file, contents)?;
        file.sync_all()
    });
    written.and_then(|()| temporary.take_place(path)).map_err(FileError::of("write", path))
}

/// Writes a folder whole or not at all, in place of one that may be there: `write` fills the folder it is given.
///
/// # Errors
/// Whatever `write` returns, and [`FileError`]; the folder that was there is untouched then.
pub fn write_folder<E: From<FileError>>(path: &Path, write: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    let temporary = Temporary::filled(path, write)?;
    // A folder cannot be renamed over another, so the old one steps aside first.
    let aside = path.exists().then(|| temporary_name(path, REPLACED));
    if let Some(aside) = &aside {
        fs::rename(path, aside).map_err(FileError::of("replace", path))?;
    }
    if let Err(error) = fs::rename(&temporary.path, path) {
        if let Some(aside) = &aside {
            let _ = fs::rename(aside, path);
        }
        return Err(FileError::of("write", path)(error).into());
    }
    sync_parent(path).map_err(FileError::of("write", path))?;
    if let Some(aside) = &aside {
        remove(aside).map_err(FileError::of("remove", aside))?;
    }
    Ok(())
}

/// The same where nothing, or an empty folder, stands: nothing else is ever replaced. The folders above are made.
///
/// # Errors
/// Whatever `write` returns, and [`FileError`].
pub fn write_new_folder<E: From<FileError>>(path: &Path, write: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    fs::create_dir_all(parent(path)).map_err(FileError::of("write", path))?;
    let temporary = Temporary::filled(path, write)?;
    let cleared = if path.exists() { fs::remove_dir(path) } else { Ok(()) };
    cleared.and_then(|()| temporary.take_place(path)).map_err(FileError::of("write", path))?;
    Ok(())
}

/// Removes a folder so that a crash leaves no half of it under its name.
///
/// # Errors
/// [`FileError`].
pub fn remove_folder(path: &Path) -> Result<(), FileError> {
    let temporary = Temporary::beside(path);
    fs::rename(path, &temporary.path).and_then(|()| remove(&temporary.path)).map_err(FileError::of("remove", path))
}

/// Cleans up after a process that was killed while writing in `folder`: what it had not finished is removed, and what it
/// had set aside for something new returns to its place if nothing new got there.
///
/// # Errors
/// [`FileError`].
pub fn remove_leftovers(folder: &Path) -> Result<(), FileError> {
    for entry in fs::read_dir(folder).map_err(FileError::of("read", folder))? {
        let path = entry.map_err(FileError::of("read", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(name) = name.strip_prefix('.') else { continue };
        let original = name.rsplit_once(REPLACED).map(|(original, _)| path.with_file_name(original));
        match original {
            Some(original) if !original.exists() => {
                fs::rename(&path, &original).map_err(FileError::of("restore", &original))?;
            }
            None if !name.contains(UNFINISHED) => {}
            _ => remove(&path).map_err(FileError::of("remove", &path))?,
        }
    }
    Ok(())
}

/// Part of the name of what is being written or removed: `.NAME.unfinished-PROCESS`.
const UNFINISHED: &str = ".unfinished-";
/// Part of the name of what is being replaced: `.NAME.replaced-PROCESS`.
const REPLACED: &str = ".replaced-";

fn temporary_name(path: &Path, mark: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{mark}{}", std::process::id()))
}

/// A name beside the final one; what stands under it is removed when this is dropped.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn beside(path: &Path) -> Self {
        Self { path: temporary_name(path, UNFINISHED) }
    }

    /// A folder that `write` has filled, forced to the disk.
    fn filled<E: From<FileError>>(path: &Path, write: impl FnOnce(&Path) -> Result<(), E>) -> Result<Self, E> {
        let temporary = Self::beside(path);
        let begun = remove(&temporary.path).and_then(|()| fs::create_dir(&temporary.path));
        begun.map_err(FileError::of("write", path))?;
        write(&temporary.path)?;
        sync_tree(&temporary.path).map_err(FileError::of("write", path))?;
        Ok(temporary)
    }

    /// Gives what was written its name.
    fn take_place(&self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        sync_parent(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = remove(&self.path);
    }
}

/// Removes a file or a folder, if there is one.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Forces a folder with all it holds to the disk.
fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(folder)
}

/// The folder that holds a file or folder.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    sync_folder(parent(path))
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Other systems cannot open folders as files and force renames to the disk themselves.
#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn full_disk(path: &Path) -> FileError {
        FileError::of("write", path)(ErrorKind::StorageFull.into())
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        write_file(&path, b"old").unwrap();
        write_file(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["report.json"]);
    }

    #[test]
    fn a_folder_is_replaced_whole_and_nothing_of_the_old_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter.v1");
        let write = |name: &str| {
            write_folder(&path, |folder| {
                fs::create_dir(folder.join("deeper")).unwrap();
                fs::write(folder.join("deeper").join(name), name).map_err(FileError::of("write", folder))
            })
        };
        write("old").unwrap();
        write("new").unwrap();
        assert_eq!(names(&path.join("deeper")), ["new"]);
        assert_eq!(names(folder.path()), ["adapter.v1"]);
    }

    #[test]
    fn a_failing_writer_leaves_the_old_folder_and_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter");
        write_folder(&path, |folder| fs::write(folder.join("weights"), "good").map_err(FileError::of("write", folder)))
            .unwrap();
        let failed = write_folder(&path, |folder| {
            fs::write(folder.join("weights"), "ba").unwrap();
            Err(full_disk(folder))
        });
        assert!(matches!(failed, Err(FileError { source, .. }) if source.kind() == ErrorKind::StorageFull));
        assert_eq!(fs::read(path.join("weights")).unwrap(), b"good");
        assert_eq!(names(folder.path()), ["adapter"]);
    }

    #[test]
    fn a_new_folder_takes_the_place_of_an_empty_one_and_of_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("above").join("model");
        let fill = |folder: &Path| fs::write(folder.join("weights"), "new").map_err(FileError::of("write", folder));
        write_new_folder(&path, fill).unwrap();
        assert_eq!(fs::read(path.join("weights")).unwrap(), b"new");
        let failed = write_new_folder(&path, |folder| {
            fs::write(folder.join("other"), "newer").map_err(FileError::of("write", folder))
        });
        assert!(matches!(failed, Err(FileError { action: "write", .. })));
        assert_eq!((names(&path), names(&folder.path().join("above"))), (vec!["weights".into()], vec!["model".into()]));
        fs::remove_file(path.join("weights")).unwrap();
        write_new_folder(&path, fill).unwrap();
        assert_eq!(names(&path), ["weights"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_disk_that_is_full_is_reported_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("adapter");
        let failed = write_folder(&path, |folder| {
            std::os::unix::fs::symlink("/dev/full", folder.join("weights")).unwrap();
            fs::write(folder.join("weights"), "values").map_err(FileError::of("write", folder))
        });
        assert!(matches!(failed, Err(FileError { source, .. }) if source.kind() == ErrorKind::StorageFull));
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn leftovers_of_a_killed_process_are_removed_or_restored() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, holds: &str| {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("weights"), holds).unwrap();
        };
        make("adapter", "kept");
        make(".adapter.replaced-1", "replaced");
        make(".adapter.unfinished-1", "half");
        make(".best.replaced-1", "restored");
        make(".best.unfinished-1", "half");
        make(".cache", "foreign");
        fs::write(folder.path().join(".log.jsonl.unfinished-1"), "half").unwrap();

        remove_leftovers(folder.path()).unwrap();
        assert_eq!(names(folder.path()), [".cache", "adapter", "best"]);
        assert_eq!(fs::read(folder.path().join("adapter/weights")).unwrap(), b"kept");
        assert_eq!(fs::read(folder.path().join("best/weights")).unwrap(), b"restored");
    }
}
