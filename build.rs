//! Compiles `proto/` with a protobuf compiler written in Rust, so that nothing has to be installed.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors =
        protox::compile(["rpc.proto", "v3lock.proto", "v3election.proto"], ["proto"])?;
    // Server reflection hands these out.
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::wire::Fitting")
        .compile_fds(descriptors)?;
    Ok(())
}
