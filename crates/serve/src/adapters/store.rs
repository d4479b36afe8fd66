//! Which adapters there are, and which of them are in memory.
//!
//! A name means a folder. What was read from it is a generation; requests hold the one they began with, and the next
//! request gets the current one. Replacing is a change of one pointer under a lock, after everything that can fail.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::files::{AdapterError, AdapterLimits, Root, check_name};
use super::resident::Resident;
use crate::base::BaseModel;

/// The adapters that requests may name.
pub struct Adapters {
    base: Arc<BaseModel>,
    root: Option<Root>,
    limits: AdapterLimits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<String, Entry>,
    /// Counts uses, to know which one was longest ago.
    clock: u64,
    totals: StoreState,
}

/// One name.
struct Entry {
    folder: PathBuf,
    /// One load at a time.
    loading: Arc<Mutex<()>>,
    resident: Option<Arc<Resident>>,
    is_pinned: bool,
    used: u64,
    requests: u64,
}

/// What has happened, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreState {
    /// Adapters in memory.
    pub resident: usize,
    /// Bytes of them.
    pub resident_bytes: usize,
    /// Names.
    pub names: usize,
    /// Loads that succeeded.
    pub loads: u64,
    /// Loads that failed.
    pub failures: u64,
    /// Adapters that left memory for others.
    pub evictions: u64,
}

/// What is known of a name.
#[derive(Clone)]
pub struct AdapterStatus {
    /// The name.
    pub name: String,
    /// What is in memory.
    pub resident: Option<Arc<Resident>>,
    /// Whether it stays in memory.
    pub is_pinned: bool,
    /// Requests that named it.
    pub requests: u64,
}

impl Adapters {
    /// The adapters of a folder, each named by its path below it; none without a folder. Nothing is loaded yet.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn new(base: Arc<BaseModel>, folder: Option<&Path>, limits: AdapterLimits) -> Result<Self, AdapterError> {
        let failed = |path: &Path, source| AdapterError::Read { path: path.display().to_string(), source };
        let root = folder.map(|folder| Root::new(folder).map_err(|error| failed(folder, error))).transpose()?;
        let this = Self { base, root, limits, state: Mutex::default() };
        if let Some(root) = &this.root {
            let mut found = Vec::new();
            find(root.path(), root.path(), &mut found, 4).map_err(|error| failed(root.path(), error))?;
            let mut state = this.state();
            for (name, folder) in found.into_iter().take(limits.names) {
                if check_name(&name).is_ok() && name != this.base.name {
                    state.entries.insert(name, Entry::new(folder));
                }
            }
        }
        Ok(this)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn root(&self) -> Result<&Root, AdapterError> {
        self.root.as_ref().ok_or(AdapterError::NoFolder)
    }

    /// Whether there is such a name, in memory or not.
    pub fn knows(&self, name: &str) -> bool {
        self.state().entries.contains_key(name)
    }

    /// The current generation of an adapter, which is loaded if need be. With `generation`, that one or an error. Blocks
    /// while it loads.
    ///
    /// # Errors
    /// An unknown name; whatever is wrong with its files.
    pub fn get(&self, name: &str, generation: Option<&str>) -> Result<Arc<Resident>, AdapterError> {
        let check = |resident: Arc<Resident>| match generation {
            Some(expected) if expected != resident.generation => Err(AdapterError::Generation {
                name: name.to_owned(),
                found: resident.generation.clone(),
                expected: expected.to_owned(),
            }),
            _ => Ok(resident),
        };
        if let Some(resident) = self.in_memory(name)? {
            return check(resident);
        }
        let (folder, loading) = {
            let state = self.state();
            let entry = state.entries.get(name).ok_or_else(|| AdapterError::Unknown { name: name.to_owned() })?;
            (entry.folder.clone(), Arc::clone(&entry.loading))
        };
        let _one_at_a_time = loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resident) = self.in_memory(name)? {
            return check(resident);
        }
        let resident = self.read(name, &folder)?;
        self.install(name, &folder, &resident, None);
        check(resident)
    }

    fn in_memory(&self, name: &str) -> Result<Option<Arc<Resident>>, AdapterError> {
        let mut state = self.state();
        state.clock += 1;
        let clock = state.clock;
        let entry = state.entries.get_mut(name).ok_or_else(|| AdapterError::Unknown { name: name.to_owned() })?;
        entry.used = clock;
        Ok(entry.resident.clone())
    }

    /// Counts a request to an adapter.
    pub fn count(&self, name: &str) {
        if let Some(entry) = self.state().entries.get_mut(name) {
            entry.requests += 1;
        }
    }

    /// Loads an adapter from a path within the folder under a name. With `replace` the name may be taken: requests that
    /// run keep what they began with.
    ///
    /// # Errors
    /// A path outside, a name that is taken, or whatever is wrong with the files; everything is then as before.
    pub fn load(&self, name: &str, path: &str, replace: bool) -> Result<Arc<Resident>, AdapterError> {
        check_name(name)?;
        if name == self.base.name {
            return Err(AdapterError::Name { name: name.to_owned(), reason: "it is the base model's" });
        }
        let folder = self.root()?.resolve(path)?;
        let loading = {
            let state = self.state();
            match state.entries.get(name) {
                Some(entry) if entry.resident.is_some() && !replace => {
                    return Err(AdapterError::Loaded { name: name.to_owned() });
                }
                Some(entry) if entry.folder != folder && !replace => {
                    return Err(AdapterError::Loaded { name: name.to_owned() });
                }
                Some(entry) => Arc::clone(&entry.loading),
                None if state.entries.len() >= self.limits.names => {
                    return Err(AdapterError::TooMany { limit: self.limits.names });
                }
                None => Arc::default(),
            }
        };
        let _one_at_a_time = loading.lock().unwrap_or_else(PoisonError::into_inner);
        let resident = self.read(name, &folder)?;
        self.install(name, &folder, &resident, Some(Arc::clone(&loading)));
        Ok(resident)
    }

    /// Forgets a name. Requests that run keep what they began with.
    ///
    /// # Errors
    /// If there is no such name.
    pub fn unload(&self, name: &str) -> Result<(), AdapterError> {
        let removed = self.state().entries.remove(name);
        removed.map(|_| ()).ok_or_else(|| AdapterError::Unknown { name: name.to_owned() })
    }

    /// Keeps an adapter in memory, or lets it leave again. It is loaded if need be.
    ///
    /// # Errors
    /// As [`Adapters::get`].
    pub fn pin(&self, name: &str, is_pinned: bool) -> Result<Arc<Resident>, AdapterError> {
        let resident = self.get(name, None)?;
        if let Some(entry) = self.state().entries.get_mut(name) {
            entry.is_pinned = is_pinned;
        }
        Ok(resident)
    }

    fn read(&self, name: &str, folder: &Path) -> Result<Arc<Resident>, AdapterError> {
        let started = Instant::now();
        let read = self.root()?.read(folder, name, &self.limits);
        let made = read.and_then(|read| Resident::new(&self.base, name, read, started));
        let mut state = self.state();
        match made {
            Ok(resident) => {
                state.totals.loads += 1;
                Ok(Arc::new(resident))
            }
            Err(error) => {
                state.totals.failures += 1;
                Err(error)
            }
        }
    }

    /// Makes a generation the current one, and frees memory. `made` is the lock of a name that may be new; without one a
    /// name that has been forgotten meanwhile stays forgotten.
    fn install(&self, name: &str, folder: &Path, resident: &Arc<Resident>, made: Option<Arc<Mutex<()>>>) {
        let mut state = self.state();
        state.clock += 1;
        let clock = state.clock;
        if let Some(loading) = made {
            let entry = state.entries.entry(name.to_owned()).or_insert_with(|| Entry::new(folder.to_owned()));
            (entry.loading, entry.folder) = (loading, folder.to_owned());
        }
        if let Some(entry) = state.entries.get_mut(name) {
            (entry.resident, entry.used) = (Some(Arc::clone(resident)), clock);
        }
        state.make_room(self.limits.resident_bytes, name);
    }

    /// All names in order, with what is in memory.
    pub fn list(&self) -> Vec<AdapterStatus> {
        let state = self.state();
        let entries = state.entries.iter();
        entries.map(|(name, entry)| entry.status(name)).collect()
    }

    /// What is known of one name.
    pub fn status(&self, name: &str) -> Option<AdapterStatus> {
        self.state().entries.get(name).map(|entry| entry.status(name))
    }

    /// Counts for metrics.
    pub fn totals(&self) -> StoreState {
        let state = self.state();
        let resident = || state.entries.values().filter_map(|entry| entry.resident.as_ref());
        StoreState {
            resident: resident().count(),
            resident_bytes: resident().map(|resident| resident.bytes).sum(),
            names: state.entries.len(),
            ..state.totals
        }
    }
}

impl State {
    /// Lets adapters that nobody uses leave, those whose last use is longest ago first, until the rest fits.
    fn make_room(&mut self, limit: usize, newest: &str) {
        let bytes = |entry: &Entry| entry.resident.as_ref().map_or(0, |resident| resident.bytes);
        let mut total: usize = self.entries.values().map(bytes).sum();
        while total > limit {
            let idle = self.entries.iter_mut().filter(|(name, entry)| {
                let is_idle = entry.resident.as_ref().is_some_and(|resident| Arc::strong_count(resident) == 1);
                is_idle && !entry.is_pinned && name.as_str() != newest
            });
            let Some((_, entry)) = idle.min_by_key(|(_, entry)| entry.used) else { return };
            total -= bytes(entry);
            entry.resident = None;
            self.totals.evictions += 1;
        }
    }
}

impl Entry {
    fn new(folder: PathBuf) -> Self {
        Self { folder, loading: Arc::default(), resident: None, is_pinned: false, used: 0, requests: 0 }
    }

    fn status(&self, name: &str) -> AdapterStatus {
        let (resident, is_pinned) = (self.resident.clone(), self.is_pinned);
        AdapterStatus { name: name.to_owned(), resident, is_pinned, requests: self.requests }
    }
}

/// Folders below `folder`, at most `depth` deep, that hold an adapter, with their names.
fn find(root: &Path, folder: &Path, found: &mut Vec<(String, PathBuf)>, depth: usize) -> std::io::Result<()> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    entries.sort();
    for path in entries {
        // Links are followed only when a path is resolved, where it is known whether they lead out.
        if !path.symlink_metadata()?.is_dir() {
            continue;
        }
        if path.join("adapter_config.json").is_file() || path.join("adapters.json").is_file() {
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            found.push((name, path));
        } else if depth > 1 {
            find(root, &path, found, depth - 1)?;
        }
    }
    Ok(())
}
