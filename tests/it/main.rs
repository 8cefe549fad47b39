//! Integration tests: one binary, so that it links once. They start the servers that they need.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod alike;
mod api;
mod architecture;
mod bad_input;
mod cli;
mod contract;
mod copy;
mod copy_safety;
mod demo;
mod differential;
mod etcd2;
mod etcd3;
mod etcdctl;
mod foreign;
mod history;
mod mariadb;
mod migration;
mod open_files;
mod operator;
mod overlay;
mod postgres;
mod random;
mod servers;
mod sql;
mod storm;
mod support;
mod table;
mod twin;
mod under_load;
