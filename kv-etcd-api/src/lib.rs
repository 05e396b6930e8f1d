#![doc = include_str!("../README.md")]

mod secrets;

/// Declares a module with the generated code of a proto package.
macro_rules! package {
    ($(#[$doc:meta])* $name:ident, $file:literal) => {
        $(#[$doc])*
        #[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
        #[rustfmt::skip]
        #[allow(rustdoc::all)]
        pub mod $name {
            include!(concat!("generated/", $file));
        }
    };
}

package!(
    /// Services and messages of the key-value store, its watches, leases, members, maintenance and users.
    etcdserverpb,
    "etcdserverpb.rs"
);
package!(
    /// Keys with their values, and events.
    mvccpb,
    "mvccpb.rs"
);
package!(
    /// Users, roles and permissions.
    authpb,
    "authpb.rs"
);
package!(
    /// The service `Lock`.
    v3lockpb,
    "v3lockpb.rs"
);
package!(
    /// The service `Election`.
    v3electionpb,
    "v3electionpb.rs"
);

/// The descriptors of all files, with those of their imports, as an encoded `google.protobuf.FileDescriptorSet`: for gRPC
/// reflection, and for the paths of the JSON gateway (option `google.api.http`).
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptors.bin");
