//! The flags of TLS and users, of which there are none.

use super::{
    Effect::{Absent, Unneeded},
    Flag,
    Kind::{Bool, Number, Text},
    flags,
};

pub(super) const FLAGS: &[Flag] = flags! {
    Security {
        "cert-file" Text, "" => Absent; TLS;
        "key-file" Text, "" => Absent; TLS;
        "client-cert-auth" Bool, "false" => Absent; TLS;
        "client-cert-file" Text, "" => Absent; TLS;
        "client-key-file" Text, "" => Absent; TLS;
        "client-crl-file" Text, "" => Absent; TLS;
        "client-cert-allowed-hostname" Text, "" => Absent; TLS;
        "trusted-ca-file" Text, "" => Absent; TLS;
        "auto-tls" Bool, "false" => Absent; TLS;
        "peer-cert-file" Text, "" => Absent; TLS;
        "peer-key-file" Text, "" => Absent; TLS;
        "peer-client-cert-auth" Bool, "false" => Absent; TLS;
        "peer-client-cert-file" Text, "" => Absent; TLS;
        "peer-client-key-file" Text, "" => Absent; TLS;
        "peer-trusted-ca-file" Text, "" => Absent; TLS;
        "peer-cert-allowed-cn" Text, "" => Absent; TLS;
        "peer-cert-allowed-hostname" Text, "" => Absent; TLS;
        "peer-auto-tls" Bool, "false" => Absent; TLS;
        "peer-crl-file" Text, "" => Absent; TLS;
        "peer-skip-client-san-verification" Bool, "false" => Unneeded; WITH_TLS;
        "self-signed-cert-validity" Number, "1" => Unneeded; WITH_TLS;
        "cipher-suites" Text, "" => Unneeded; WITH_TLS;
        "tls-min-version" Text, "TLS1.2" => Unneeded; WITH_TLS;
        "tls-max-version" Text, "" => Unneeded; WITH_TLS;
        "auth-token" Text, "simple" => Absent; "its tokens are of the kind simple; every member accepts them, also after a restart";
        "auth-token-ttl" Number, "300" => Unneeded; "a token is valid until its user is deleted or gets another password";
        "bcrypt-cost" Number, "10" => Unneeded; "passwords are hashed by argon2id";
    }
};

const TLS: &str = "there is no TLS; run the server in a network of its own, or behind a proxy that ends TLS";
const WITH_TLS: &str = "only with TLS, which is refused";
