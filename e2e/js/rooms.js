// What the user of a device does in encrypted rooms.
import { EventStatus, MatrixEvent } from "matrix-js-sdk";

/** Makes a room, where each sender shares a new key after so many messages. */
export async function create(client, { rotation }) {
    const { room_id } = await client.createRoom({
        preset: "public_chat",
        initial_state: [{
            type: "m.room.encryption",
            state_key: "",
            content: { algorithm: "m.megolm.v1.aes-sha2", rotation_period_msgs: rotation },
        }],
    });
    return room_id;
}

export async function join(client, { room, via }) {
    await client.joinRoom(room, { viaServers: [via] });
}

/** Whether the device sees the room with its members, and has heard of devices, each a user and a device ID. */
export async function knows(client, { room, members, devices }) {
    const seen = client.getRoom(room);
    if (!seen?.hasEncryptionStateEvent() || !members.every((user) => seen.getMember(user)?.membership === "join")) {
        return false;
    }
    const known = await client.getCrypto().getUserDeviceInfo(members);
    return devices.every(([user, device]) => known.get(user)?.has(device));
}

/** Sends a message through the server, and returns its event ID. */
export async function send(client, { room, body }) {
    const { event_id } = await client.sendTextMessage(room, body);
    return event_id;
}

/** Encrypts a message, and returns the content that others can read who have the key. */
export async function encrypt(client, { room, body }) {
    const event = new MatrixEvent({ type: "m.room.message", room_id: room, content: { msgtype: "m.text", body } });
    event.setStatus(EventStatus.SENDING);
    await client.getCrypto().encryptEvent(event, client.getRoom(room));
    return event.getWireContent();
}
