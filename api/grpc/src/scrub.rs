//! ScrubService.

use engine_store::api::{Link, ScrubRequest, ScrubState, ScrubStatus};
use proto::v1;
use proto::v1::scrub_service_server::ScrubService;
use tonic::{Request, Response, Status};

use crate::core::Shared;
use crate::export::ExportControl;
use crate::status::{OnResource, cut};

fn scrub(status: ScrubStatus) -> Option<v1::Scrub> {
    let state = match status.state {
        ScrubState::Never => v1::ScrubState::Unspecified,
        ScrubState::Done => v1::ScrubState::Done,
        ScrubState::Cancelled => v1::ScrubState::Cancelled,
        ScrubState::Paused => v1::ScrubState::Paused,
        ScrubState::Running => v1::ScrubState::Running,
    };
    Some(v1::Scrub {
        state: state.into(),
        began_ns: status.began_ns,
        ended_ns: status.ended_ns,
        bytes_per_second: status.bytes_per_second,
        total_bytes: status.total_bytes,
        done_bytes: status.done_bytes,
        problem_count: status.problems,
        healed_count: status.healed,
        last_problem: cut(&status.last_problem.unwrap_or_default()),
    })
}

impl<L, E> Shared<L, E>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
    E: ExportControl,
{
    async fn scrub<T, R>(
        &self,
        method: &'static str,
        request: &Request<T>,
        asked: ScrubRequest,
        answer: impl FnOnce(Option<v1::Scrub>) -> R,
    ) -> Result<Response<R>, Status> {
        let call = self.admit(method, request)?;
        let work = async {
            let status = match asked {
                ScrubRequest::Start { bytes_per_second } => {
                    self.client.scrub_start(bytes_per_second).await
                }
                other => self.client.scrub(other).await,
            };
            Ok(answer(scrub(status.plain()?)))
        };
        call.run(work).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl<L, E> ScrubService for Shared<L, E>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
    E: ExportControl,
{
    async fn start_scrub(
        &self,
        request: Request<v1::StartScrubRequest>,
    ) -> Result<Response<v1::StartScrubResponse>, Status> {
        let asked = ScrubRequest::Start { bytes_per_second: request.get_ref().bytes_per_second };
        let answer = |scrub| v1::StartScrubResponse { scrub };
        Shared::scrub(self, "StartScrub", &request, asked, answer).await
    }

    async fn get_scrub(
        &self,
        request: Request<v1::GetScrubRequest>,
    ) -> Result<Response<v1::GetScrubResponse>, Status> {
        let answer = |scrub| v1::GetScrubResponse { scrub };
        Shared::scrub(self, "GetScrub", &request, ScrubRequest::Status, answer).await
    }

    async fn pause_scrub(
        &self,
        request: Request<v1::PauseScrubRequest>,
    ) -> Result<Response<v1::PauseScrubResponse>, Status> {
        let answer = |scrub| v1::PauseScrubResponse { scrub };
        Shared::scrub(self, "PauseScrub", &request, ScrubRequest::Pause, answer).await
    }

    async fn resume_scrub(
        &self,
        request: Request<v1::ResumeScrubRequest>,
    ) -> Result<Response<v1::ResumeScrubResponse>, Status> {
        let answer = |scrub| v1::ResumeScrubResponse { scrub };
        Shared::scrub(self, "ResumeScrub", &request, ScrubRequest::Resume, answer).await
    }

    async fn cancel_scrub(
        &self,
        request: Request<v1::CancelScrubRequest>,
    ) -> Result<Response<v1::CancelScrubResponse>, Status> {
        let answer = |scrub| v1::CancelScrubResponse { scrub };
        Shared::scrub(self, "CancelScrub", &request, ScrubRequest::Cancel, answer).await
    }
}
