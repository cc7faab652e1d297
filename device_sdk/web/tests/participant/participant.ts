/**
 * A second device SDK, as small as the protocol allows: it takes part once, over gRPC, and ends.
 *
 *     node participant.mjs ORDER
 *
 * Written from `docs/protocol.md` and the comments of the protos, to know whether they say enough: `fedrecon
 * conformance` judges it. The plan is run by the web SDK; keys live as long as the process.
 */

import { readFileSync } from "node:fs";

import { type Bytes, fromHex, toHex } from "../../src/digests.js";
import { FedreconError } from "../../src/errors.js";
import * as contract from "../contract.js";
import { CallFailure, encode, Line, sleep, TimeEnded } from "./line.js";
import { Masking } from "./masking.js";
import { fetchMaterial, type Material, makeReport, type Report } from "./reporting.js";

const COORDINATOR = "/fedrecon.v1.Coordinator";
const ENROLMENT = "/fedrecon.v1.Enrolment";
const AGGREGATOR = "/fedrecon.v1.Aggregator";
const [TRUSTED, SECAGG_PLUS] = [1, 2];
const [JOINING, SHARING, UPLOADING, UNMASKING, CLOSED, ABORTED] = [1, 2, 3, 4, 5, 6];
const OUTCOMES = {
  UPLOADED: 1,
  LOCAL_FAILED: 2,
  NOT_ELIGIBLE: 3,
  LOCAL_TIMEOUT: 4,
  UPLOAD_TIMEOUT: 5,
  REFUSED: 7,
  TOO_LATE: 8,
};
const LATE = new Set(["ROUND_CLOSED", "TOKEN_EXPIRED", "GROUP_FULL", "UNKNOWN_GROUP", "UNKNOWN_ROUND"]);
const MOVED = new Set(["GROUP_MOVED", "UNKNOWN_ROUND"]);

interface Order {
  readonly target: string;
  readonly population: string;
  readonly trusted_plans: readonly string[];
  readonly secure_sum: "required" | "allowed";
  readonly min_group: number;
  readonly min_contributors: number;
  readonly examples: Record<string, (string | number)[]>;
}

/** The round or the group went on. */
class TooLate extends Error {}

/** The assignment is below what the app insists on. */
class Refused extends Error {}

class Device {
  private readonly line = new Line();
  private readonly secret = random(32);
  private key: Bytes = new Uint8Array(0);
  private token: Bytes = new Uint8Array(0);
  private assignment: any;
  private aggregator = "";
  private shape = "-";

  constructor(private readonly order: Order) {}

  async participate(): Promise<void> {
    this.key = await publicHalf(this.secret);
    const answer = await this.checkIn();
    if (answer.assignment) {
      this.assignment = answer.assignment;
      this.aggregator = this.assignment.aggregator;
      this.line.deadline = Date.now() + Number(this.assignment.report_within_milliseconds);
      const outcome = await this.work();
      this.line.deadline = Infinity;
      const path = `${COORDINATOR}/FinishSession`;
      const ending = { ...this.named(), outcome, shape: this.shape };
      const body = await this.inSession(path, "FinishSessionRequest", ending);
      await this.line.call(this.order.target, path, "FinishSessionResponse", async () => body);
    }
    this.line.close();
  }

  private async checkIn(): Promise<any> {
    const { population, trusted_plans, secure_sum, min_group, min_contributors } = this.order;
    const floors = {
      trusted_plans: trusted_plans.map(fromHex),
      ...(secure_sum === "required" ? { secure_sum_required: true } : {}),
      minimum_group: min_group,
      ...(min_contributors ? { minimum_contributors: min_contributors } : {}),
    };
    let ticket: object = {};
    for (;;) {
      const request = { population, sdk_version: "0.1.0", plan_formats: [1], floors, ...ticket };
      const make = () => this.signed(`${COORDINATOR}/CheckIn`, "CheckInRequest", request);
      const ask = () => this.line.call(this.order.target, `${COORDINATOR}/CheckIn`, "CheckInResponse", make, 45);
      const answer = await ask().catch(async (error: unknown) => {
        if (!(error instanceof CallFailure) || error.reason !== "NOT_ENROLLED") {
          throw error;
        }
        await this.enrol();
        return ask();
      });
      if (!answer.ticket) {
        return answer;
      }
      ticket = { ticket: answer.ticket.ticket };
      await sleep(Number(answer.ticket.wait_milliseconds));
    }
  }

  private async enrol(): Promise<void> {
    const { target } = this.order;
    const asking = async () => encode("ChallengeRequest", { device_key: this.key });
    const { challenge } = await this.line.call(target, `${ENROLMENT}/Challenge`, "ChallengeResponse", asking);
    const transcript = await contract.enrolmentTranscript(this.key, Uint8Array.from(challenge), new Uint8Array(0));
    const signature = await contract.sign(this.secret, transcript);
    const answering = async () => encode("EnrolRequest", { device_key: this.key, challenge, signature });
    this.token = (await this.line.call(target, `${ENROLMENT}/Enrol`, "EnrolResponse", answering)).token;
  }

  /** Returns a request's bytes, signed anew where the device has a token. */
  private async signed(path: string, type: string, fields: object): Promise<Bytes> {
    const credentials: Record<string, Bytes> = { device_key: this.key };
    if (this.token.length > 0) {
      Object.assign(credentials, { token: this.token, nonce: random(16) });
      const body = encode(type, { credentials, ...fields });
      const transcript = await contract.callTranscript(path, credentials["nonce"]!, body);
      credentials["signature"] = await contract.sign(this.secret, transcript);
    }
    return encode(type, { credentials, ...fields });
  }

  /** Returns credentials with the MAC of a session's call, given the message with credentials that have none yet. */
  private async proven(path: string, message: (credentials: object) => Bytes): Promise<object> {
    const key = Uint8Array.from(this.assignment.session_key as Bytes);
    if (key.length === 0) {
      return { device_key: this.key };
    }
    const credentials = { device_key: this.key, nonce: random(16) };
    const mac = await contract.hmac(key, await contract.callTranscript(path, credentials.nonce, message(credentials)));
    return { ...credentials, mac };
  }

  private named(): object {
    const { session, round, round_token } = this.assignment;
    return { session, round, round_token };
  }

  /** Returns the bytes of a call of this session: made once, and sent with every try. */
  private async inSession(path: string, type: string, fields: any): Promise<Bytes> {
    const message = (credentials: object) =>
      fields.proof
        ? encode(type, { ...fields, proof: { credentials, ...fields.proof } })
        : encode(type, { credentials, ...fields });
    return message(await this.proven(path, message));
  }

  private async toAggregator(method: string, fields: object): Promise<Bytes> {
    return this.inSession(`${AGGREGATOR}/${method}`, `${method}Request`, { proof: this.named(), ...fields });
  }

  /** Calls the aggregator, wherever the coordinator says that it is. */
  private async sum(method: string, body: Bytes): Promise<any> {
    const call = () =>
      this.line.call(this.aggregator, `${AGGREGATOR}/${method}`, `${method}Response`, async () => body);
    return call().catch(async (error: unknown) => {
      if (!(error instanceof CallFailure) || !MOVED.has(error.reason)) {
        throw error;
      }
      const path = `${COORDINATOR}/Locate`;
      const question = await this.inSession(path, "LocateRequest", this.named());
      const located = await this.line.call(this.order.target, path, "LocateResponse", async () => question);
      this.aggregator = located.aggregator;
      return call();
    });
  }

  /** Says the same, in the same bytes, until the group has left a phase. */
  private async past(phase: number, method: string, fields: object): Promise<any> {
    const body = await this.toAggregator(method, fields);
    for (;;) {
      const answer = await this.sum(method, body);
      if (answer.phase !== phase) {
        if ((answer.phase === CLOSED || answer.phase === ABORTED) && !this.shape.includes("^")) {
          throw new TooLate();
        }
        return answer;
      }
    }
  }

  private async work(): Promise<number> {
    try {
      await this.verify();
      const material = await fetchMaterial(this.assignment, this.line);
      this.shape += "v";
      this.verifyContributors(material);
      this.shape += "[";
      const report = await makeReport(this.assignment, material, this.order.examples);
      this.shape += "]";
      await (this.assignment.secure_sum.protocol === TRUSTED ? this.deliver(report) : this.deliverMasked(report));
    } catch (error) {
      const outcome = this.shape.includes("^") ? OUTCOMES.UPLOADED : this.outcomeOf(error);
      const late = outcome === OUTCOMES.TOO_LATE || error instanceof TimeEnded;
      this.shape += late ? "#" : "!";
      return outcome;
    }
    return OUTCOMES.UPLOADED;
  }

  private outcomeOf(error: unknown): number {
    const timeout = this.shape.includes("]") ? OUTCOMES.UPLOAD_TIMEOUT : OUTCOMES.LOCAL_TIMEOUT;
    if (error instanceof Refused) {
      return OUTCOMES.REFUSED;
    }
    if (error instanceof TooLate || (error instanceof CallFailure && LATE.has(error.reason))) {
      return OUTCOMES.TOO_LATE;
    }
    if (error instanceof TimeEnded || (error instanceof CallFailure && error.isTransient)) {
      return timeout;
    }
    const isTooFew = error instanceof FedreconError && error.reason === "TOO_FEW_EXAMPLES";
    return isTooFew ? OUTCOMES.NOT_ELIGIBLE : OUTCOMES.LOCAL_FAILED;
  }

  private async verify(): Promise<void> {
    const { session, kind, clip_norm, plan, signature, secure_sum } = this.assignment;
    const isMalformed = session.length !== 16 || ![1, 2].includes(kind) || !(clip_norm >= 0 && clip_norm < Infinity);
    refuseIf(isMalformed, "MALFORMED_ASSIGNMENT");
    const publisher = Uint8Array.from(signature?.publisher_key ?? []);
    const message = contract.join("fedrecon plan 1", plan.digest);
    const isSigned =
      this.order.trusted_plans.includes(toHex(publisher)) &&
      (await contract.verify(publisher, Uint8Array.from(signature.signature), message).catch(() => false));
    refuseIf(!isSigned, "UNTRUSTED_PLAN");
    refuseIf(this.order.secure_sum === "required" && secure_sum.protocol < SECAGG_PLUS!, "SECURE_SUM_REQUIRED");
    refuseIf(Math.min(secure_sum.minimum_group, secure_sum.maximum_reports) < this.order.min_group, "GROUP_TOO_SMALL");
    refuseIf(![TRUSTED, SECAGG_PLUS].includes(secure_sum.protocol), "UNKNOWN_PROTOCOL");
  }

  private verifyContributors({ plan, rowSets }: Material): void {
    if (this.order.min_contributors === 0) {
      return;
    }
    for (const { parameter, row_set_digest } of this.assignment.layout.segments) {
      const hasRows = (plan.manifest.parameters ?? []).some(({ name, vocabulary }) => name === parameter && vocabulary);
      const set = rowSets.get(toHex(row_set_digest));
      const expected = set ? (set.contributors / set.cohortSize) * this.assignment.secure_sum.minimum_group : 0;
      refuseIf(hasRows && expected < this.order.min_contributors, "TOO_FEW_CONTRIBUTORS");
    }
  }

  private async deliver(report: Report): Promise<void> {
    const joined = await this.sum("Join", await this.toAggregator("Join", {}));
    this.shape += "+";
    await this.upload(joined, report.vector);
  }

  private async deliverMasked(report: Report): Promise<void> {
    const smallest = Math.max(this.order.min_group, this.assignment.secure_sum.minimum_group);
    const masking = new Masking(this.assignment, report, smallest, this.key);
    const { message, ...keys } = await masking.keys();
    const key_signature = await contract.sign(this.secret, message);
    const joined = await this.past(JOINING!, "Join", { ...keys, key_signature });
    this.shape += "+";
    const { group } = joined;
    const shared = await this.past(SHARING!, "Share", { group, ...(await masking.share(joined)) });
    await this.upload(joined, await masking.mask(shared.shares));
    const lists = await this.past(UPLOADING!, "Unmask", { group });
    if (lists.phase === UNMASKING) {
      await this.past(UNMASKING!, "Unmask", { group, shares: masking.reveal(lists.survivors, lists.dropouts) });
    }
  }

  private async upload(joined: any, vector: Bytes): Promise<void> {
    this.aggregator = joined.aggregator || this.aggregator;
    const digest = await contract.sha256(vector);
    const question = await this.toAggregator("UploadStatus", { group: joined.group });
    for (let failures = 0; ; ) {
      const status = await this.sum("UploadStatus", question);
      if (status.acknowledged) {
        break;
      }
      if (status.phase >= UNMASKING!) {
        throw new TooLate();
      }
      const offset = failures ? Number(status.received_bytes) : 0;
      try {
        await this.line.upload(this.aggregator, await this.parts(joined.group, vector, digest, offset));
        break;
      } catch (error) {
        failures += 1;
        if (!(error instanceof CallFailure) || !error.isTransient) {
          throw error;
        }
        await this.line.pause(error, failures);
      }
    }
    this.shape += "^";
  }

  private async parts(group: Bytes, vector: Bytes, digest: Bytes, offset: number): Promise<Bytes[]> {
    const begin = offset ? { offset } : {};
    const header = (credentials: object) => ({
      proof: { credentials, ...this.named() },
      group,
      size: vector.length,
      digest,
      ...begin,
    });
    const path = `${AGGREGATOR}/Upload`;
    const credentials = await this.proven(path, (known) => encode("UploadHeader", header(known)));
    const data = vector.slice(offset);
    const chunk = { ...begin, data, digest: await contract.sha256(data) };
    return [encode("UploadRequest", { header: header(credentials) }), encode("UploadRequest", { chunk })];
  }
}

function refuseIf(wrong: boolean, reason: string): void {
  if (wrong) {
    throw new Refused(reason);
  }
}

function random(bytes: number): Bytes {
  return crypto.getRandomValues(new Uint8Array(bytes));
}

async function publicHalf(secret: Bytes): Promise<Bytes> {
  const prefix = fromHex("302e020100300506032b657004220420");
  const key = await crypto.subtle.importKey("pkcs8", contract.join(prefix, secret), "Ed25519", true, ["sign"]);
  const { x } = await crypto.subtle.exportKey("jwk", key);
  return Uint8Array.from(Buffer.from(x!, "base64url"));
}

await new Device(JSON.parse(readFileSync(process.argv[2]!, "utf8")) as Order).participate();
