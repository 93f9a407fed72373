//! The subcommands that run once and print their result. Each has its own file. `run` and `guard` start the processes
//! of [`agent`](crate::agent) and [`guard`](crate::guard).

pub mod completions;
pub mod doctor;
pub mod explain;
pub mod man;
pub mod migrate;
mod output;
pub mod probe;
pub mod status;
