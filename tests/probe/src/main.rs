// SPDX-License-Identifier: Apache-2.0
//! Servers, clients and packet senders for the tests.
//!
//! Linked statically and free of dependencies, so that the same program runs in a container's namespace, on a simulated
//! host and in a guest that has nothing but busybox.

mod arguments;
mod bulk;
mod client;
mod console;
mod dhcp6;
mod load;
mod packet;
mod room;
mod server;
mod stream;

use std::process::ExitCode;

use arguments::Arguments;

const USAGE: &str = "\
usage:
  weft-probe serve --name NAME [--bind ADDR] [--tcp PORT]... [--udp PORT]...
      answers every TCP connection and every datagram with `NAME CLIENT-ADDRESS`, then echoes
  weft-probe connect tcp|udp|udp-unconnected ADDR:PORT [--timeout MS] [--count N]
      prints one answer a line; exit status 0 if all N came
  weft-probe stream tcp|udp ADDR:PORT [--rate PER-SECOND] [--seconds S] [--timeout MS]
      numbered records there and back; prints a tally; exit status 0 if none was lost
  weft-probe bulk ADDR:PORT [--mib N] [--timeout MS]
      N MiB to a server of `serve` and back, every byte checked
  weft-probe send IFACE HEX [--count N] [--offload FLAGS,SEGMENTATION,HEADER,SEGMENT,START,OFFSET]
      sends a raw Ethernet frame, with requests to the device (virtio_net_hdr) where they are given
  weft-probe dhcp6 IFACE [--timeout MS]
      asks for an address by DHCPv6 and prints it
  weft-probe console
      runs the scripts that come over its standard input, one a line as `NUMBER SCRIPT`, each answered by
      `@NUMBER STATUS OUTPUT`; line ends are escaped
  weft-probe load-serve PORT [--cpu N]
      the server of `load`, one connection after the other
  weft-probe load rr|crr|stream ADDR:PORT [--millis MS] [--cpu N]
      one byte there and back on one connection, or on a connection each, or as many bytes as fit; prints nanoseconds";

fn main() -> ExitCode {
    let mut arguments = Arguments::new(std::env::args().skip(1));
    let outcome = match arguments.word().as_deref() {
        Some("serve") => server::run(&mut arguments),
        Some("connect") => client::run(&mut arguments),
        Some("stream") => stream::run(&mut arguments),
        Some("bulk") => bulk::run(&mut arguments),
        Some("send") => packet::run(&mut arguments),
        Some("dhcp6") => dhcp6::run(&mut arguments),
        Some("console") => console::run(&mut arguments),
        Some("load-serve") => load::serve(&mut arguments),
        Some("load") => load::run(&mut arguments),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
