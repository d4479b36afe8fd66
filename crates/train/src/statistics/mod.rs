//! Statistics of studies, one a file: what several runs say together, and whether two methods differ.

mod bootstrap;
mod paired;
mod quantile;
mod subspace;
mod summary;

pub use bootstrap::{Interval, bootstrap_interval};
pub use paired::{Comparison, paired_t_test, wilcoxon_signed_rank};
pub use quantile::quantile;
pub use subspace::{normalized_subspace_similarity, subspace_similarities};
pub use summary::Summary;
