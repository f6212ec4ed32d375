// What the devices of one user ask each other for.
import { VerificationMethod } from "matrix-js-sdk/lib/types.js";

export const methods = [VerificationMethod.Sas];

/** Makes the user's cross-signing keys on the device. */
export async function crossSign(client, { password }) {
    await client.getCrypto().bootstrapCrossSigning({
        setupNewCrossSigning: true,
        authUploadDeviceSigningKeys: (upload) =>
            upload({ type: "m.login.password", identifier: { type: "m.id.user", user: client.getUserId() }, password }),
    });
}

/** Whether the device has the private cross-signing keys: made there, or given by another device that the user has verified it with. */
export async function hasSecrets(client) {
    const { privateKeysCachedLocally: keys } = await client.getCrypto().getCrossSigningStatus();
    return keys.masterKey && keys.selfSigningKey && keys.userSigningKey;
}

/** Whether the device takes another one for verified. */
export async function trusts(client, { user, other }) {
    const status = await client.getCrypto().getDeviceVerificationStatus(user, other);
    return Boolean(status?.isVerified());
}

/** Lets the device ask for the keys of messages which it can't read. The library can do it, and leaves it to backups unless told. */
export function askForKeys(client) {
    client.getCrypto().olmMachine.roomKeyRequestsEnabled = true;
}
