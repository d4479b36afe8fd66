//! How much memory the process has used.

use std::fs;

/// The largest resident size that the process has had, in bytes; `None` where the system does not tell (not Linux).
pub fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_grows_with_what_is_used() {
        let before = peak_memory().unwrap();
        let used = vec![1u8; 64 << 20];
        let after = peak_memory().unwrap();
        assert!(used.iter().all(|byte| *byte == 1));
        assert!(after >= 64 << 20 && after >= before, "{before} {after}");
    }
}
