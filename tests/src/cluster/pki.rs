// SPDX-License-Identifier: Apache-2.0

//! The cluster's keys: one certificate authority, the API server's certificate, its client certificate for kubelets, the key that
//! signs service account tokens, and one bearer token per component.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::SERVICE_CIDRS_FIRST;
use super::command::{command, output, run};
use super::network::{CONTROL_PLANE, NODES};

/// A user known to the API server by a token.
pub(crate) struct User {
    /// Name of the kubeconfig and of the token file.
    pub(crate) file: &'static str,
    name: &'static str,
    group: &'static str,
}

/// The components that talk to the API server.
pub(crate) const USERS: [User; 6] = [
    User { file: "admin", name: "admin", group: "system:masters" },
    User { file: "controller-manager", name: "system:kube-controller-manager", group: "" },
    User { file: "scheduler", name: "system:kube-scheduler", group: "" },
    User { file: "proxy", name: "system:kube-proxy", group: "system:node-proxiers" },
    User { file: NODES[0].name, name: "system:node:node1", group: "system:nodes" },
    User { file: NODES[1].name, name: "system:node:node2", group: "system:nodes" },
];

/// Makes all keys in `directory`.
///
/// # Errors
/// `openssl` fails, or a file cannot be written.
pub(crate) fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    create_authority(directory)?;
    let [first_v4, first_v6] = SERVICE_CIDRS_FIRST;
    let names = format!(
        "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,\
         IP:127.0.0.1,IP:{},IP:{},IP:{first_v4},IP:{first_v6}",
        CONTROL_PLANE.v4, CONTROL_PLANE.v6
    );
    create_certificate(directory, "apiserver", "/CN=kube-apiserver", &format!("subjectAltName={names}"))?;
    create_certificate(
        directory,
        "kubelet-client",
        "/O=system:masters/CN=kube-apiserver",
        "extendedKeyUsage=clientAuth",
    )?;
    run(command("openssl", ["genrsa", "-out"]).arg(directory.join("service-account.key")).arg("2048"))?;
    create_tokens(directory)
}

fn create_authority(directory: &Path) -> Result<()> {
    let mut openssl =
        command("openssl", ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    openssl.args(["-days", "30", "-subj", "/CN=weft-testbed", "-keyout"]).arg(directory.join("ca.key"));
    run(openssl.arg("-out").arg(directory.join("ca.crt")))
}

fn create_certificate(directory: &Path, name: &str, subject: &str, extension: &str) -> Result<()> {
    let mut openssl =
        command("openssl", ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    openssl.args([
        "-days",
        "30",
        "-subj",
        subject,
        "-addext",
        extension,
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ]);
    openssl.arg("-CA").arg(directory.join("ca.crt")).arg("-CAkey").arg(directory.join("ca.key"));
    openssl.arg("-keyout").arg(directory.join(format!("{name}.key")));
    run(openssl.arg("-out").arg(directory.join(format!("{name}.crt"))))
}

/// One random token per user, and the file from which the API server reads them all.
fn create_tokens(directory: &Path) -> Result<()> {
    let mut table = String::new();
    for user in &USERS {
        let token = output(&mut command("openssl", ["rand", "-hex", "32"]))?.trim().to_owned();
        table += &format!("{token},{},{},\"{}\"\n", user.name, user.name, user.group);
        let path = directory.join(format!("{}.token", user.file));
        fs::write(&path, token).with_context(|| format!("write {}", path.display()))?;
    }
    fs::write(directory.join("tokens.csv"), table).context("write tokens.csv")
}
