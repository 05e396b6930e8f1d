//! The services that gRPC itself defines: health, and reflection.

use futures::stream::BoxStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

use super::{Etcd, error};

type Result<T> = std::result::Result<T, Status>;

/// As in etcd, only the whole server has a health, under the empty name.
#[tonic::async_trait]
impl Health for Etcd {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>> {
        Ok(Response::new(self.health_of(&request.into_inner().service)?))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>> {
        let now = self.health_of(&request.into_inner().service)?;
        let mut stop = self.stop.clone();
        let end = async move {
            crate::frontend::stopped(&mut stop).await;
            Err(error::stopped())
        };
        let changes = futures::stream::once(std::future::ready(Ok(now)));
        Ok(Response::new(Box::pin(futures::StreamExt::chain(changes, futures::stream::once(end)))))
    }
}

impl Etcd {
    fn health_of(&self, service: &str) -> Result<HealthCheckResponse> {
        if service.is_empty() {
            Ok(HealthCheckResponse { status: ServingStatus::Serving.into() })
        } else {
            Err(Status::not_found("unknown service"))
        }
    }
}

/// Reflection: the server describes its services.
pub(super) mod reflection {
    use kv_etcd_api::FILE_DESCRIPTOR_SET;
    use tonic_reflection::{
        pb::{
            v1::server_reflection_server::{ServerReflection, ServerReflectionServer},
            v1alpha::server_reflection_server as alpha,
        },
        server::Builder,
    };

    fn builder() -> Builder<'static> {
        Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    }

    /// # Panics
    /// The descriptors are wrong; a test calls it.
    pub(in super::super) fn of_v1() -> ServerReflectionServer<impl ServerReflection> {
        builder().build_v1().expect("the descriptors are well")
    }

    /// # Panics
    /// The descriptors are wrong; a test calls it.
    pub(in super::super) fn of_v1alpha() -> alpha::ServerReflectionServer<impl alpha::ServerReflection> {
        builder().build_v1alpha().expect("the descriptors are well")
    }

    #[test]
    fn descriptors_are_well() {
        let _ = (of_v1(), of_v1alpha());
    }
}
