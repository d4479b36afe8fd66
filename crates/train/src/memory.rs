//! How much memory the process has used, and how often it met fresh memory.

use std::fs;

/// The largest resident size that the process has had, in bytes; `None` where the system does not tell (not Linux).
pub fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

/// Lets [`peak_memory`] count from now on, so that each of several runs of a process has a peak of its own. Without effect
/// where the system has no such thing (not Linux).
pub fn reset_peak_memory() {
    // 5 resets the peak resident size alone.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Page faults of the process so far that needed no disk: each is a fresh page of 4 KiB. `None` where the system does
/// not tell (not Linux).
pub fn page_faults() -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything; minor faults are the eighth field after it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(7)?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    // One test, because there is one peak a process: a reset beside the other half would be seen there.
    #[test]
    fn the_peak_grows_with_what_is_used_until_a_reset_forgets_it() {
        let before = peak_memory().unwrap();
        let used = std::hint::black_box(vec![1u8; 256 << 20]);
        let after = peak_memory().unwrap();
        assert!(used.iter().all(|byte| *byte == 1));
        assert!(after >= 256 << 20 && after >= before, "{before} {after}");
        drop(used);
        reset_peak_memory();
        let left = peak_memory().unwrap();
        assert!(left + (128 << 20) < after, "{left} {after}");
    }

    #[test]
    fn fresh_memory_costs_page_faults() {
        let before = page_faults().unwrap();
        let used = vec![1u8; 64 << 20];
        let after = page_faults().unwrap();
        assert!(used.iter().all(|byte| *byte == 1));
        // At least one a huge page.
        assert!(after - before >= 32, "{before} {after}");
    }
}
