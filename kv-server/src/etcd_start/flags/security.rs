//! The flags of TLS and users.

use super::{
    Effect::{Absent, Becomes, Sets, Unneeded},
    Flag,
    Kind::{Bool, Choice, Number, Text},
    flags,
};

pub(super) const FLAGS: &[Flag] = flags! {
    Security {
        "cert-file" Text, "" => Sets("tls_cert_file"); "certificate for clients, PEM or DER; https:// URLs need it. It is read again when it changes, and at SIGHUP";
        "key-file" Text, "" => Sets("tls_key_file"); "private key of --cert-file";
        "client-cert-auth" Bool, "false" => Becomes("`tls_client_certificates`"); "clients must show a certificate; as in etcd they must, too, if there is a --trusted-ca-file";
        "client-cert-file" Text, "" => Sets("tls_outgoing_cert_file"); "certificate that the member shows when it forwards requests to the leader; by default --cert-file";
        "client-key-file" Text, "" => Sets("tls_outgoing_key_file"); "private key of --client-cert-file";
        "client-crl-file" Text, "" => Sets("tls_crl_file"); "revoked certificates of clients; PEM or DER, where etcd takes DER alone";
        "client-cert-allowed-hostname" Text, "" => Sets("tls_allowed_hostnames"); "hosts that certificates of clients may be for, separated by commas";
        "trusted-ca-file" Text, "" => Sets("tls_ca_file"); "certificates of the authorities that sign those of clients, and of the members for clients; read again when it changes, where etcd must be restarted";
        "auto-tls" Bool, "false" => Sets("tls_auto"); "makes a certificate for clients if there is no --cert-file; nobody can verify it";
        "peer-cert-file" Text, "" => Sets("peer_tls_cert_file"); "certificate for other members; https:// peer URLs need it";
        "peer-key-file" Text, "" => Sets("peer_tls_key_file"); "private key of --peer-cert-file";
        "peer-client-cert-auth" Bool, "false" => Becomes("`peer_tls_ca_file`"); "always: members verify each other, and --peer-cert-file needs --peer-trusted-ca-file";
        "peer-client-cert-file" Text, "" => Sets("peer_tls_outgoing_cert_file"); "certificate that the member shows when it connects to other members; by default --peer-cert-file";
        "peer-client-key-file" Text, "" => Sets("peer_tls_outgoing_key_file"); "private key of --peer-client-cert-file";
        "peer-trusted-ca-file" Text, "" => Sets("peer_tls_ca_file"); "certificates of the authorities that sign those of members; certificates for clients alone (extended key usage) are refused";
        "peer-cert-allowed-cn" Text, "" => Sets("peer_tls_allowed_names"); "common names that certificates of members may have, separated by commas";
        "peer-cert-allowed-hostname" Text, "" => Sets("peer_tls_allowed_hostnames"); "hosts that certificates of members may be for, separated by commas; with --peer-cert-allowed-cn one of both will do";
        "peer-auto-tls" Bool, "false" => Sets("peer_tls_auto"); "makes a certificate for other members if there is no --peer-cert-file; members then do not verify each other";
        "peer-crl-file" Text, "" => Sets("peer_tls_crl_file"); "revoked certificates of members; PEM or DER";
        "peer-skip-client-san-verification" Bool, "false" => Unneeded; "the address of a member that connects is not compared with its certificate; restrict its names with --peer-cert-allowed-hostname";
        "self-signed-cert-validity" Number, "1" => Unneeded; "certificates of --auto-tls are made at each start, for a year";
        "cipher-suites" Text, "" => Sets("tls_cipher_suites"); "cipher suites by the names of Go, separated by commas; weak ones are refused";
        "tls-min-version" Choice(&["TLS1.2", "TLS1.3"]), "TLS1.2" => Sets("tls_min_version"); "oldest version of TLS";
        "tls-max-version" Choice(&["TLS1.2", "TLS1.3"]), "" => Sets("tls_max_version"); "newest version of TLS, by default TLS1.3";
        "auth-token" Text, "simple" => Absent; "its tokens are of the kind simple; every member accepts them, also after a restart";
        "auth-token-ttl" Number, "300" => Unneeded; "a token is valid until its user is deleted or gets another password";
        "bcrypt-cost" Number, "10" => Unneeded; "passwords are hashed by argon2id";
    }
};
