// SPDX-License-Identifier: Apache-2.0
//! `weft`: the operator's command. Asks the node's agent over its unix socket.

#![forbid(unsafe_code)]

mod frame;
mod kube_proxy;
mod print;
mod show;
mod table;
mod vm;

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, anyhow, bail};
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use weft_api::{
    API_VERSION, Answer, Client, ClientError, DEFAULT_SOCKET, Entries, ExplainQuery, List, Request, VmReport,
};

use crate::print::Output;

/// How long the agent may take for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Shows what Weft does on this node.
///
/// Talks to the agent of this node over its unix socket, so it runs on the node as root, or in the agent's pod:
/// `kubectl -n kube-system exec ds/weft-agent -- weft status`.
#[derive(Debug, Parser)]
#[command(
    name = "weft",
    version,
    after_help = "Exit status: 0 done, 1 the agent cannot be asked or refuses, or something could not be removed, 3 `weft status`: the agent is not ready, 4 `weft explain`: the packet is dropped."
)]
struct Arguments {
    /// The agent's socket
    #[arg(long, global = true, env = "WEFT_SOCKET", value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Tables for people, or the agent's answer as JSON for programs
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    /// Aligned columns
    #[default]
    Table,
    /// JSON; `flows --follow`, `vm trace` and `kube-proxy cleanup` print one object a line
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The agent: source, addresses, maps and their memory, problems
    Status,
    /// Workloads plugged into this node: addresses, interface, policies that isolate them
    Endpoints,
    /// Services and where they lead
    Services,
    /// NetworkPolicies and the pods of this node that they select
    Policies,
    /// Latest flows with verdict and reason: drops always, others while they are followed (or by `flowSample`)
    Flows {
        /// How many of the latest events to show first
        #[arg(long, value_name = "N", default_value_t = 50)]
        last: usize,
        /// Go on with new events until interrupted, of every flow
        #[arg(short, long)]
        follow: bool,
    },
    /// Packets dropped, by reason
    Drops {
        /// Also reasons that have dropped nothing
        #[arg(long)]
        all: bool,
    },
    /// What would happen to the first packet of a flow: every look-up, and the verdict. Nothing is sent
    ///
    /// The programs' own logic runs on the programs' own maps. Exit status 0: the packet goes on, 4: it is dropped.
    Explain {
        /// An address, `NAMESPACE/NAME` of a pod, or `host` for this node
        #[arg(long, value_name = "WHO")]
        from: String,
        /// An address, `NAMESPACE/NAME` of a pod, `svc/NAMESPACE/NAME` of a Service, or `host`
        #[arg(long, value_name = "WHO")]
        to: String,
        /// Destination port; none for protocols without ports
        #[arg(long, default_value_t = 0)]
        port: u16,
        /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6` or a number
        #[arg(long, default_value = "tcp", value_parser = protocol)]
        protocol: u8,
        /// Source port
        #[arg(long, value_name = "PORT", default_value_t = 40_000)]
        source_port: u16,
    },
    /// vhost-user ports: sockets for VMMs, devices, rings, frames
    #[command(visible_alias = "vms")]
    Vm {
        #[command(subcommand)]
        command: Option<VmCommand>,
    },
    /// What a kube-proxy left on this node
    KubeProxy {
        #[command(subcommand)]
        command: KubeProxyCommand,
    },
    /// Print the manual page of `weft` in roff: `weft man | man -l -`
    Man,
}

/// Without a subcommand: all ports, one a line.
#[derive(Debug, Subcommand)]
enum VmCommand {
    /// One port: its device, features, rings and their counters
    Show {
        /// The pod (`NAMESPACE/NAME` or `NAME`) or the tap
        vm: String,
    },
    /// Follow the next frames of one port: one a line, with its ends; `-o json` has the first bytes of each
    Trace {
        /// The pod (`NAMESPACE/NAME` or `NAME`) or the tap
        vm: String,
        /// End after this many frames
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        frames: u32,
    },
}

#[derive(Debug, Subcommand)]
enum KubeProxyCommand {
    /// Remove it from this network namespace, whatever the mode: chains `KUBE-*` of iptables (both backends) and the jumps to
    /// them, ipsets, the device kube-ipvs0 and nftables' tables kube-proxy
    ///
    /// Runs as root on the node itself, where `iptables` is. The agent is not asked. Where kube-ipvs0 is, all virtual servers of
    /// ipvs go with it, since ipvs does not know whose they are. What is kubelet's stays (KUBE-FIREWALL, KUBE-IPTABLES-HINT,
    /// KUBE-KUBELET-CANARY), and so do conntrack entries, nfacct counters and sysctls. May be run again.
    Cleanup {
        /// Say what would be removed, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Go on though a kube-proxy runs, which writes its rules again
        #[arg(long)]
        force: bool,
    },
}

/// The number of an IP protocol.
fn protocol(text: &str) -> Result<u8, String> {
    let known = [("tcp", 6), ("udp", 17), ("sctp", 132), ("icmp", 1), ("icmpv6", 58)];
    let lower = text.to_ascii_lowercase();
    let named = known.iter().find(|(name, _)| *name == lower).map(|(_, number)| *number);
    named
        .or_else(|| text.parse().ok())
        .ok_or_else(|| "give tcp, udp, sctp, icmp, icmpv6 or a number up to 255".to_owned())
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Without stderr there is nobody to tell.
            drop(writeln!(io::stderr(), "weft: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The entries of a list, part by part, as they come.
macro_rules! parts {
    ($client:expr, $list:ident, $name:expr) => {
        $client.pages(List::$list, $name).map(|part| match part.map_err(told)? {
            Entries::$list(entries) => Ok(entries),
            other => bail!("the agent gave {other:?} for another list; use the `weft` of the agent's version"),
        })
    };
}

fn run(Arguments { socket, output, command }: &Arguments) -> Result<ExitCode> {
    if matches!(command, Command::Man) {
        return manual(&mut io::stdout().lock());
    }
    let json = matches!(output, Format::Json);
    let mut output = Output::new(json, io::stdout().lock());
    if let Command::KubeProxy { command: KubeProxyCommand::Cleanup { dry_run, force } } = command {
        return kube_proxy::cleanup(*dry_run, *force, &mut output).map(|()| ExitCode::SUCCESS);
    }
    let mut client = connect(socket, command)?;
    let client = &mut client;
    match command {
        Command::Status => {
            let status = client.status().map_err(told)?;
            output.print(&status, show::status)?;
            return Ok(if status.not_ready.is_some() { ExitCode::from(3) } else { ExitCode::SUCCESS });
        }
        Command::Explain { from, to, port, protocol, source_port } => {
            let (from, to) = (from.clone(), to.clone());
            let query = ExplainQuery { from, to, port: *port, source_port: *source_port, protocol: *protocol };
            match client.call(&Request::Explain(query)).map_err(told)? {
                Answer::Explanation(explanation) => {
                    output.print(&*explanation, show::explanation)?;
                    return Ok(if explanation.forwarded { ExitCode::SUCCESS } else { ExitCode::from(4) });
                }
                other => return unexpected(&other),
            }
        }
        Command::Endpoints => {
            let parts = parts!(client, Endpoints, None);
            output.print_parts(parts, show::endpoints, "no workload is attached to this node")?;
        }
        Command::Services => {
            output.print_parts(parts!(client, Services, None), show::services, "no Service is programmed")?;
        }
        Command::Policies => {
            output.print_parts(parts!(client, Policies, None), show::policies, "there is no NetworkPolicy")?;
        }
        Command::Vm { command: None } => {
            output.print_parts(parts!(client, Vms, None), vm::overview, "no vhost-user port is on this node")?;
        }
        Command::Vm { command: Some(VmCommand::Show { vm }) } => {
            output.print(vm::find(&vms_named(client, vm)?, vm)?, vm::details)?;
        }
        Command::Vm { command: Some(VmCommand::Trace { vm, frames }) } => {
            let vms = vms_named(client, vm)?;
            vm::trace(Path::new(&vm::find(&vms, vm)?.control_path), *frames, &mut output)?;
        }
        Command::Drops { all } => match client.call(&Request::Drops).map_err(told)? {
            Answer::Drops(mut drops) => {
                drops.retain(|drop| *all || drop.packets > 0);
                output.print(&drops, |drops| show::drops(drops))?;
            }
            other => return unexpected(&other),
        },
        Command::Flows { last, follow } => flows(client, &mut output, *last, *follow)?,
        Command::KubeProxy { .. } | Command::Man => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// The vhost-user ports of this name, as far as the agent can tell them.
fn vms_named(client: &mut Client, name: &str) -> Result<Vec<VmReport>> {
    Ok(parts!(client, Vms, Some(name)).collect::<Result<Vec<_>>>()?.concat())
}

/// The text of a client's error has its cause in it.
fn told(error: ClientError) -> anyhow::Error {
    anyhow!("{error}")
}

/// Only `flows --follow` waits for longer than an answer takes.
fn flows(client: &mut Client, output: &mut Output<impl io::Write>, last: usize, follow: bool) -> Result<()> {
    let mut answer = client.call(&Request::Flows { last, follow }).map_err(told)?;
    let local = io::stdout().is_terminal();
    loop {
        match answer {
            Answer::Flows(events) if follow => output.print_lines(&events, |event| show::flow(event, local))?,
            Answer::Flows(events) => return output.print(&events, |events| show::flows(events)),
            other => return unexpected(&other).map(drop),
        }
        answer = client.next_answer().map_err(told)?;
    }
}

/// One page: the command, then each of its subcommands.
fn manual(writer: &mut impl io::Write) -> Result<ExitCode> {
    let command = Arguments::command();
    clap_mangen::Man::new(command.clone()).render(writer)?;
    for subcommand in command.get_subcommands() {
        let page = clap_mangen::Man::new(subcommand.clone());
        writeln!(writer, ".SH \"{} {}\"", command.get_name(), subcommand.get_name())?;
        page.render_description_section(writer)?;
        page.render_options_section(writer)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn connect(socket: &Path, command: &Command) -> Result<Client> {
    // Between two flows any time may pass.
    let patience = (!matches!(command, Command::Flows { follow: true, .. })).then_some(PATIENCE);
    Client::connect(socket, patience).map_err(|error| match &error {
        ClientError::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            anyhow!("{error}; only root may ask it: use sudo")
        }
        ClientError::Unreachable { .. } => {
            anyhow!("{error} Look at its pod (kubectl -n kube-system get pods -l app.kubernetes.io/name=weft), or name its socket with --socket")
        }
        _ => anyhow!("{error}"),
    })
}

fn unexpected(answer: &Answer) -> Result<ExitCode> {
    bail!(
        "the agent answered {answer:?}; use the `weft` of the agent's version (this one speaks api version {API_VERSION})"
    )
}

/// The reader of our output (`head`) has had enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Arguments;

    #[test]
    fn arguments_contradict_themselves_nowhere() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_manual_names_every_subcommand() {
        let mut page = Vec::new();
        super::manual(&mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        for name in ["status", "endpoints", "services", "policies", "flows", "drops", "vm", "kube-proxy"] {
            assert!(page.contains(&format!(".SH \"weft {name}\"")), "{name} is missing");
        }
    }
}
