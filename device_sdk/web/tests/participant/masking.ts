/** A member's part in a secure sum: what it checks, shares, masks and reveals. */

import { type Bytes, toHex } from "../../src/digests.js";
import * as contract from "../contract.js";
import type { Shape } from "../contract.js";
import type { Report } from "./reporting.js";

const FEWEST_NEIGHBOURS = 10;
const SHARE_BYTES = 33;
const COEFFICIENT_BYTES = 49;

/** A device refuses a sum: it goes no further. */
export class SumRefused extends Error {}

function refuseIf(wrong: boolean, reason: string): void {
  if (wrong) {
    throw new SumRefused(reason);
  }
}

export class Masking {
  readonly shareSecret = random(32);
  readonly maskSecret = random(32);
  private readonly seed = random(32);
  private context: Bytes = new Uint8Array(0);
  private index = 0;
  private threshold = 0;
  private complete = false;
  private readonly neighbours = new Map<number, any>();
  private readonly held = new Map<number, Bytes>();

  constructor(
    private readonly assignment: any,
    private readonly report: Report,
    private readonly smallest: number,
    private readonly deviceKey: Bytes,
  ) {}

  async keys(): Promise<{ share_key: Bytes; mask_key: Bytes; message: Bytes }> {
    const share_key = await contract.publicKey(this.shareSecret);
    const mask_key = await contract.publicKey(this.maskSecret);
    const session = await contract.sha256(Uint8Array.from(this.assignment.session));
    return { share_key, mask_key, message: contract.keysMessage(this.round(), session, share_key, mask_key) };
  }

  /** Enters the group, and returns shares for the neighbours with the commitment to the seed. */
  async share(joined: any): Promise<{ shares: object[]; seed_commitment: Bytes }> {
    await this.enter(joined);
    const length = (this.threshold - 1) * COEFFICIENT_BYTES;
    const entropies = [random(length), random(length)];
    const shares: object[] = [];
    for (const [index, member] of this.neighbours) {
      const pair = [this.maskSecret, this.seed].map((secret, which) =>
        contract.share(secret, this.threshold, entropies[which]!, index + 1),
      );
      const key = await this.agreed("fedrecon share 1", index, this.shareSecret, member.share_key);
      const ciphertext = await contract.seal(key, this.context, this.index, index, contract.join(...pair));
      const from = this.index ? { from_index: this.index } : {};
      shares.push({ ...from, ...(index ? { to_index: index } : {}), ciphertext });
    }
    return { shares, seed_commitment: await contract.seedCommitment(this.context, this.index, this.seed) };
  }

  /** Opens what the neighbours shared, and returns the report under all masks. */
  async mask(shares: readonly any[]): Promise<Bytes> {
    for (const { from_index: from, to_index: to, ciphertext } of shares) {
      const member = this.neighbours.get(from);
      refuseIf(to !== this.index || member === undefined || this.held.has(from), "BAD_SHARE");
      const key = await this.agreed("fedrecon share 1", from, this.shareSecret, member.share_key);
      const sealed = Uint8Array.from(ciphertext as Bytes);
      this.held.set(
        from,
        await contract.open(key, this.context, from, to, sealed).catch(() => {
          throw new SumRefused("BAD_SHARE");
        }),
      );
    }
    this.countThose(this.held.size);
    const shape = this.shape();
    let vector = contract.add(this.report.vector, await contract.mask(this.seed, shape), 1n, shape);
    for (const index of this.held.keys()) {
      const key = this.neighbours.get(index).mask_key;
      const seed = await this.agreed("fedrecon mask 1", index, this.maskSecret, key);
      vector = contract.add(vector, await contract.mask(seed, shape), this.index < index ? 1n : -1n, shape);
    }
    return vector;
  }

  /** Returns one share of each neighbour that shared. */
  reveal(survivors: readonly number[], dropouts: readonly number[]): object[] {
    const listed = [...survivors, ...dropouts].sort((one, other) => one - other);
    const known = [...this.held.keys()].sort((one, other) => one - other);
    refuseIf(String(listed) !== String(known), "BAD_LISTS");
    this.countThose(survivors.length);
    return known.map((index) => {
      const alive = survivors.includes(index);
      const pair = this.held.get(index)!;
      const share = alive ? pair.slice(SHARE_BYTES) : pair.slice(0, SHARE_BYTES);
      return { ...(index ? { index } : {}), kind: alive ? 1 : 2, share };
    });
  }

  private async enter(joined: any): Promise<void> {
    const { neighbours, members, threshold } = joined;
    const lengths = [joined.group, joined.server_nonce, joined.roster_digest].map((bytes) => bytes.length);
    refuseIf(String(lengths) !== "16,32,32", "BAD_ROSTER");
    refuseIf(members < this.smallest, "GROUP_TOO_SMALL");
    refuseIf(members > this.report.agreed.maximum_reports, "GROUP_TOO_LARGE");
    const count = neighbours.length;
    refuseIf(count < Math.min(FEWEST_NEIGHBOURS, members - 1) || count < threshold, "TOO_FEW_NEIGHBOURS");
    refuseIf(2 * threshold <= count, "THRESHOLD_TOO_LOW");
    this.index = joined.index;
    this.threshold = threshold;
    const { share_key, mask_key } = await this.keys();
    const own = { share_key, mask_key, device_key: this.deviceKey };
    const all = [own, ...neighbours];
    const keys = new Set(all.flatMap((one: any) => [toHex(one.share_key), toHex(one.mask_key)]));
    const devices = new Set(all.map((one: any) => toHex(one.device_key)));
    neighbours.forEach((member: any) => this.neighbours.set(member.index, member));
    const others = this.neighbours.size === count && !this.neighbours.has(this.index);
    const within = Math.max(this.index, ...this.neighbours.keys()) < members;
    refuseIf(!others || !within || keys.size !== 2 * all.length || devices.size !== all.length, "BAD_ROSTER");
    for (const member of neighbours) {
      const message = contract.keysMessage(this.round(), member.session_digest, member.share_key, member.mask_key);
      const signed = await contract
        .verify(Uint8Array.from(member.device_key), Uint8Array.from(member.key_signature), message)
        .catch(() => false);
      refuseIf(!signed, "BAD_SIGNATURE");
    }
    this.complete = count === members - 1;
    if (this.complete) {
      const session_digest = await contract.sha256(Uint8Array.from(this.assignment.session));
      const entry = { ...own, session_digest };
      const roster = Array.from({ length: members }, (_, index) => this.neighbours.get(index) ?? entry);
      refuseIf(toHex(await contract.rosterDigest(roster)) !== toHex(joined.roster_digest), "BAD_ROSTER");
    }
    this.context = await contract.contextOf({
      ...this.round(),
      ...this.report.agreed,
      kind: this.assignment.kind,
      group: joined.group,
      server_nonce: joined.server_nonce,
      plan_digest: this.assignment.plan.digest,
      checkpoint_digest: this.assignment.checkpoint.digest,
      members,
      neighbours: count,
      threshold,
      roster_digest: joined.roster_digest,
    });
  }

  private countThose(count: number): void {
    refuseIf(count < this.threshold, "TOO_FEW_NEIGHBOURS");
    refuseIf(this.complete && count + 1 < this.smallest, "GROUP_TOO_SMALL");
  }

  private async agreed(label: string, other: number, secret: Bytes, key: Bytes): Promise<Bytes> {
    return contract.derive(label, this.context, [this.index, other], secret, Uint8Array.from(key)).catch(() => {
      throw new SumRefused("BAD_KEY");
    });
  }

  private round(): contract.Round {
    const { task, round, attempt } = this.assignment.round;
    return { task, round: Number(round), attempt };
  }

  private shape(): Shape {
    const { segments, metric_bounds, ring_bits } = this.report.agreed;
    const elements = segments.reduce((whole, segment) => whole + segment.elements, 0);
    return { ring_bits, elements, tail_entries: 2 + metric_bounds.length };
  }
}

function random(bytes: number): Bytes {
  return crypto.getRandomValues(new Uint8Array(bytes));
}
