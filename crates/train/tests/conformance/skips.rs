//! The cases that are not run, each with its reason.

/// Why the cases of an architecture, or one method of it, are not run; `None` if they are.
pub(crate) fn reason(arch: &str, method: Option<&str>) -> Option<&'static str> {
    match (arch, method) {
        (_, None) => None,
        (_, Some("prompt-tuning" | "p-tuning")) => Some("methods at the input site are not built yet"),
        (_, Some("prefix-tuning" | "prefix-tuning-mlp")) => Some("prefix tuning is not built yet"),
        (_, Some("houlsby" | "pfeiffer" | "parallel")) => Some("bottleneck adapters are not built yet"),
        (_, Some(_)) => None,
    }
}
