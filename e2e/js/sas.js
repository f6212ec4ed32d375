// Someone in front of a device, who compares emojis with someone else. Each step waits for what has to be there first.
import { once } from "node:events";
import { CryptoEvent, VerificationPhase, VerifierEvent } from "matrix-js-sdk/lib/crypto-api/index.js";
import { until, within } from "./wait.js";

export class SASUser {
    #requests = new Map(); // by transaction ID
    #shown = new Map(); // the emojis of each, and what to press
    #done = new Map();

    follow(client) {
        client.on(CryptoEvent.VerificationRequestReceived, (request) => this.#requests.set(request.transactionId, request));
    }

    /** Asks another device, and returns the transaction ID. */
    async request(client, { user, other }) {
        const request = await client.getCrypto().requestDeviceVerification(user, other);
        this.#requests.set(request.transactionId, request);
        return request.transactionId;
    }

    async accept(_, { txn }) {
        await until(() => this.#requests.has(txn), () => `no request ${txn}`);
        await this.#requests.get(txn).accept();
    }

    /** Chooses emojis, once the other one has accepted. */
    async start(_, { txn }) {
        const request = this.#requests.get(txn);
        await phase(request, VerificationPhase.Ready);
        this.#show(txn, await request.startVerification("m.sas.v1"));
    }

    /** The emojis to compare. */
    async emojis(_, { txn }) {
        const request = this.#requests.get(txn);
        if (!this.#shown.has(txn)) {
            await phase(request, VerificationPhase.Started);
            this.#show(txn, request.verifier);
        }
        const { sas } = await within(this.#shown.get(txn), () => `no emojis, ${describe(request)}`);
        return sas.emoji.map(([emoji]) => emoji).join(" ");
    }

    /** Says that they are the same, and returns when both have said so. */
    async confirm(_, { txn }) {
        const request = this.#requests.get(txn);
        const { confirm } = await this.#shown.get(txn);
        await confirm();
        await within(this.#done.get(txn), () => `no end, ${describe(request)}`);
        await phase(request, VerificationPhase.Done);
    }

    #show(txn, verifier) {
        const shown = verifier.getShowSasCallbacks();
        this.#shown.set(txn, shown ? Promise.resolve(shown) : once(verifier, VerifierEvent.ShowSas).then(([callbacks]) => callbacks));
        const done = verifier.verify();
        done.catch(() => {}); // confirm says it
        this.#done.set(txn, done);
    }
}

/** Waits for a phase of a verification, and fails in any that comes after it. */
async function phase(request, want) {
    await until(() => request.phase >= want, () => `not in phase ${want}, ${describe(request)}`);
    if (request.phase === VerificationPhase.Cancelled || request.phase > want) {
        throw new Error(`past phase ${want}, ${describe(request)}`);
    }
}

function describe(request) {
    return `in phase ${request.phase}, cancelled for ${request.cancellationCode}`;
}
