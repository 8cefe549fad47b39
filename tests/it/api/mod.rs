//! What surrounds the requests: streams under load and failure, shutting down, plain HTTP, and what
//! tools expect of any gRPC server.

mod client;
mod connections;
mod faulty;
mod http;
mod locks;
mod streams;
