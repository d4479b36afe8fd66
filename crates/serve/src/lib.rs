//! Serving: any mix of methods in one batch over one frozen base.
//!
//! An [`Engine`] runs requests of many adapters together: prompts join and leave at every step. What a request gets
//! depends on the request alone, to the bit, and never on what is served beside it: products have rows that are
//! independent of their number, attention treats each sequence alone, and where a prompt is cut into pieces, where its
//! keys and values are shared and what a token is drawn from follow from the request. [`Adapters`] holds the adapters of
//! a folder, and [`app`] is the HTTP server over both.

mod adapters;
mod base;
mod engine;
mod http;

pub use adapters::{AdapterError, AdapterLimits, AdapterStatus, Adapters, Resident, StoreState};
pub use base::BaseModel;
pub use engine::{
    Engine, EngineOptions, Event, FinishReason, Generation, Grammar, GrammarError, Grammars, Pooled, Snapshot,
    SubmitError, TokenInfo, Usage,
};
pub use http::{App, Connections, ServerOptions, app, serve};
