// SPDX-License-Identifier: Apache-2.0
//! Virtual servers of ipvs, as `/proc/net/ip_vs` lists them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Each virtual server: its protocol and address, or its mark. Lines that begin with a blank are servers behind one.
pub(super) fn parse(listed: &str) -> Vec<String> {
    let heads = ["IP Virtual Server", "Prot ", " "];
    listed.lines().filter(|line| !heads.iter().any(|head| line.starts_with(head))).filter_map(server).collect()
}

fn server(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let (protocol, address) = (words.next()?, words.next()?);
    // What cannot be read is there all the same.
    let address = socket(address).map_or_else(|| address.to_owned(), |address| address.to_string());
    Some(format!("{protocol} {address}"))
}

/// Address and port are in base 16 but for IPv6, which is in brackets.
fn socket(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let address = match address.strip_prefix('[').and_then(|address| address.strip_suffix(']')) {
        Some(address) => IpAddr::V6(address.parse::<Ipv6Addr>().ok()?),
        None => IpAddr::V4(Ipv4Addr::from_bits(u32::from_str_radix(address, 16).ok()?)),
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn virtual_servers_are_told_from_the_servers_behind_them() {
        let listed = "IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A60000A:0050 rr  persistent 2700000 FFFFFFFF
  -> 0AF40103:1F90      Masq    1      0          0\u{20}
UDP  0A60000D:0035 rr \u{20}
TCP  [fd00:0096:0000:0000:0000:0000:0000:0010]:0050 rr persistent 2700000 80000000
  -> [fd00:0244:0001:0000:0000:0000:0000:0003]:1F90      Masq    1      0          0
FWM  00000007 rr
";
        let servers = ["TCP 10.96.0.10:80", "UDP 10.96.0.13:53", "TCP [fd00:96::10]:80", "FWM 00000007"];
        assert_eq!(parse(listed), servers);
        assert!(parse("").is_empty());
    }
}
