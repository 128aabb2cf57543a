//! Calls that cannot be answered: each gets an error that names the tensor, the numbers and the cure, on every rank alike,
//! before any data moves; and none panics.

mod anything;
mod degrees;
mod disagreement;
mod edges;
mod fixed;
mod hostile;
mod joint;
mod masks;
mod rig;
mod sequences;
mod shapes;
