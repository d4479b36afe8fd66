//! The cases that are not run, each with its reason.

/// Why the cases of an architecture, or one method of it, are not run; `None` if they are. At present all are.
pub(crate) fn reason(_arch: &str, _method: Option<&str>) -> Option<&'static str> {
    None
}
